"""Arms: what each word of a study freezes."""

import pytest

from models.blocks import Partition
from models.layout import layout_from_config
from models.pocket import PocketShape, build_config, build_tokenizer
from train.freezing.arms import Arm, check_arm, expand_arm, parse_arm, parse_arms
from train.freezing.data_arms import check_modalities
from train.freezing.freeze import FreezeArguments, plan_freeze

PARTITION = Partition(28, (9, 18))


@pytest.mark.parametrize(
    ("text", "freeze"),
    [
        ("full", ()),
        ("freeze-mid", ("mid",)),
        ("only-mid", ("early", "late")),
        ("only-early", ("mid", "late")),
        ("no-attn=mid.attn+late.attn", ("mid.attn", "late.attn")),
        ("tower=vision:0-7", ("vision:0-7",)),
        ("freeze-vision", ("vision",)),
        ("freeze-late.attn", ("late.attn",)),
        ("only-llm:0", ("llm:1-27",)),
        ("only-llm:27", ("llm:0-26",)),
        ("only-llm:1-26", ("llm:0", "llm:27")),
        ("only-llm:0-27", ()),
        ("only-llm:4.attn", ("llm:0-3", "llm:5-27", "llm:4.mlp")),
        ("only-mid.mlp", ("early", "late", "mid.attn")),
    ],
)
def test_an_arm_freezes_what_its_name_says(text: str, freeze: tuple[str, ...]) -> None:
    assert parse_arm(text, PARTITION) == Arm(text.partition("=")[0].replace(":", ""), freeze)


@pytest.mark.parametrize("expression", ["vision", "vision:0-7", "projector", "embed", "llm"])
def test_an_arm_of_a_region_trains_nothing_else(expression: str) -> None:
    arm = parse_arm(f"only-{expression}", PARTITION)
    assert arm == Arm(f"only-{expression.replace(':', '')}", train_only=(expression,))
    assert arm.frozen == f"all but {expression}"


@pytest.mark.parametrize("part", ["", ".attn", ".mlp"])
def test_the_arms_of_every_layer_divide_the_decoder(part: str) -> None:
    layout = layout_from_config(build_config(PocketShape(), build_tokenizer()).to_dict())
    everything = FreezeArguments()
    partition = plan_freeze(layout, everything).partition

    def decoder(freeze: tuple[str, ...], *, frozen: bool) -> set[str]:
        plan = plan_freeze(layout, FreezeArguments(freeze=list(freeze)))
        return {name for name in (plan.frozen if frozen else plan.trainable) if ".layers." in name}

    only, frozen = parse_arms([f"each-only{part}"], partition), parse_arms([f"each-freeze{part}"], partition)
    assert len(only) == len(frozen) == layout.num_layers
    seen: set[str] = set()
    for number, (alone, without) in enumerate(zip(only, frozen, strict=True)):
        trains = decoder(alone.freeze, frozen=False)
        assert trains == decoder(without.freeze, frozen=True)
        assert all(f".layers.{number}." in name for name in trains) and not trains & seen
        assert (alone.name, without.name) == (f"only-llm{number}{part}", f"freeze-llm{number}{part}")
        seen |= trains
    assert bool(part) == (len(seen) < len(decoder((), frozen=False)))


def test_the_arms_of_windows_take_the_layers_in_turn_and_the_last_what_is_left() -> None:
    names = [arm.name for arm in parse_arms(["full", "each-freeze:10"], PARTITION)]
    assert names == ["full", "freeze-llm0-9", "freeze-llm10-19", "freeze-llm20-27"]
    assert [arm.name for arm in parse_arms(["each-only:9.mlp"], PARTITION)][-1] == "only-llm27.mlp"


@pytest.mark.parametrize("text", ["each-only", "each-freeze:40", "only-llm:63", "freeze-vision:31", "only-late.attn"])
def test_an_arm_that_some_model_has_is_accepted_without_a_model(text: str) -> None:
    check_arm(text)


def test_the_random_control_freezes_as_many_layers_as_mid_and_the_same_for_the_same_seed() -> None:
    arm = parse_arm("freeze-random-3", PARTITION)
    layers = [int(expression.removeprefix("llm:")) for expression in arm.freeze]
    assert len(set(layers)) == len(PARTITION.layers("mid"))
    assert layers == sorted(layers) and set(layers) <= set(range(28))
    assert arm == parse_arm("freeze-random-3", PARTITION)
    assert arm.freeze != parse_arm("freeze-random-4", PARTITION).freeze


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("freeze-middle", "did you mean 'freeze-mid'"),
        ("freeze", "is unknown"),
        ("only-", "is unknown"),
        ("freeze-random-x", "is unknown"),
        ("", "is unknown"),
        ("x=", "is malformed"),
        ("=mid", "is malformed"),
        ("x=mid++late", "is malformed"),
        ("a/b=mid", "is malformed"),
        ("full=mid", "another meaning"),
        ("only-vision=mid", "another meaning"),
        ("each-only=mid", "another meaning"),
        ("only-llm:28", "out of range: this model has decoder layers 0-27"),
        ("only-llm:5-3", "out of range"),
        ("only-llm.attn", "is the arm freeze-llm.mlp"),
        ("only-vision.attn", "only decoder layers can be narrowed"),
        ("freeze-mid:3", "only llm and vision take a range"),
        ("freeze-llm:4.atn", "part 'atn' is unknown"),
        ("each-onyl", "did you mean 'each-only'"),
        ("each-only:28", "28 layers at a time; expected 1 to 27"),
        ("each-only:0", "0 layers at a time"),
        ("each-only.atn", "part 'atn' is unknown"),
    ],
)
def test_a_bad_arm_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_arm(text, PARTITION)


def test_no_arms_and_an_arm_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="arms is empty"):
        parse_arms([], PARTITION)
    with pytest.raises(ValueError, match="'only-llm3' is named twice"):
        parse_arms(["each-only", "only-llm:3"], PARTITION)
    with pytest.raises(ValueError, match="'x' is named twice"):
        parse_arms(["full", "x=mid", "x=late"], PARTITION)


def test_arms_keep_their_order() -> None:
    assert [arm.name for arm in parse_arms(["freeze-late", "full", "x=mid"], PARTITION)] == ["freeze-late", "full", "x"]


MODALITIES = ("negative", "Chest X-Ray")


@pytest.mark.parametrize(
    ("text", "name", "method", "select", "freeze"),
    [
        ("data-negative", "data-negative", "rl", ("modality=negative",), ()),
        ("data-chest-x-ray", "data-chest-x-ray", "rl", ("modality=Chest X-Ray",), ()),
        ("data-all", "data-all", "rl", (), ()),
        ("sft-all", "sft-all", "sft", (), ()),
        ("sft-negative:freeze-mid", "sft-negative-freeze-mid", "sft", ("modality=negative",), ("mid",)),
        ("data-negative:freeze-llm:4", "data-negative-freeze-llm4", "rl", ("modality=negative",), ("llm:4",)),
        ("data-boundary:only-mid", "data-boundary-only-mid", "rl", (), ("early", "late")),
    ],
)
def test_an_arm_by_data_names_its_part_its_method_and_what_it_freezes(
    text: str, name: str, method: str, select: tuple[str, ...], freeze: tuple[str, ...]
) -> None:
    (arm,) = parse_arms([text], PARTITION, MODALITIES)
    assert (arm.name, arm.data.method, arm.data.select, arm.freeze) == (name, method, select, freeze)
    assert (arm.data.part == "boundary") == ("boundary" in text)
    check_arm(text)


def test_the_arms_of_every_modality_are_spelt_for_folders() -> None:
    names = [arm.name for arm in parse_arms(["full", "each-data", "each-sft:freeze-llm:0-3"], PARTITION, MODALITIES)]
    by_data = ["data-negative", "data-chest-x-ray"]
    assert names == ["full", *by_data, "sft-negative-freeze-llm0-3", "sft-chest-x-ray-freeze-llm0-3"]


@pytest.mark.parametrize(
    ("text", "modalities", "message"),
    [
        (
            "data-negativ",
            MODALITIES,
            "'data-negativ' names no modality .*did you mean 'data-negative'.*data-chest-x-ray",
        ),
        ("sft-boundary", MODALITIES, "expected data-boundary"),
        ("data-negative", (), "name the modality in modalities"),
        ("each-data", (), "'each-data' needs modalities"),
        ("data-all:elements-changed", MODALITIES, "expected freeze-EXPRESSION or only-EXPRESSION"),
        ("data-all:freeze-mdi", MODALITIES, "'freeze-mdi' is unknown"),
        ("data-all:", MODALITIES, "ends with a colon"),
        ("data-Negative", MODALITIES, "is spelt data-negative"),
        ("data-negative=mid", MODALITIES, "has the name of an arm by data"),
        ("sft-mine=mid", (), "has the name of an arm by data"),
    ],
)
def test_a_wrong_arm_by_data_is_refused(text: str, modalities: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arms([text], PARTITION, modalities)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (["negative", "Negative"], "named twice"),
        (["all"], "another arm's name"),
        (["/"], "gives no name"),
    ],
)
def test_modalities_that_name_no_arm_of_their_own_are_refused(modalities: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_modalities(modalities)
