"""Arms: what each word of a study freezes."""

import pytest

from models.blocks import Partition
from train.freezing.arms import Arm, parse_arm, parse_arms

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
    ],
)
def test_an_arm_freezes_what_its_name_says(text: str, freeze: tuple[str, ...]) -> None:
    assert parse_arm(text, PARTITION) == Arm(text.partition("=")[0], freeze)


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
    ],
)
def test_a_bad_arm_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arm(text, PARTITION)


def test_no_arms_and_an_arm_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="arms is empty"):
        parse_arms([], PARTITION)
    with pytest.raises(ValueError, match="'x' is named twice"):
        parse_arms(["full", "x=mid", "x=late"], PARTITION)


def test_arms_keep_their_order() -> None:
    assert [arm.name for arm in parse_arms(["freeze-late", "full", "x=mid"], PARTITION)] == ["freeze-late", "full", "x"]
