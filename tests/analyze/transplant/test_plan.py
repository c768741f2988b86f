"""Which units words stand for, where their change begins, and what a variant's unit holds."""

from pathlib import Path

import pytest

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from analyze.transplant.plan import START, Unit, Variant, base_variants, expand_units, unit_of_arm, variants_of
from merge.recipes.recipe import Blend
from models.blocks import make_partition
from models.layout import Layout, layout_of

ENDS = ["full@0", "full@1"]


def units_of(words: list[str], layout: Layout) -> list[Unit]:
    return expand_units(words, layout, make_partition(layout.num_layers))


def test_words_stand_for_layers_windows_blocks_and_regions(pocket_layout: Layout) -> None:
    assert [unit.name for unit in units_of(["each.attn"], pocket_layout)] == [f"llm:{n}.attn" for n in range(6)]
    windows = units_of(["each:4"], pocket_layout)
    assert [(unit.name, unit.first, unit.last) for unit in windows] == [("llm:0-3", 0, 3), ("llm:4-5", 4, 5)]
    assert [unit.name for unit in units_of(["blocks", "regions"], pocket_layout)] == [
        "early", "mid", "late", "vision", "projector", "embed", "norm",
    ]  # fmt: skip
    layers = units_of(["each"], pocket_layout)
    named = [name for unit in layers for name in unit.tensors]
    assert sorted(named) == sorted(each.name for each in pocket_layout if each.region == "llm")
    parts = [set(unit.tensors) for unit in units_of(["each.attn", "each.mlp"], pocket_layout)]
    assert set().union(*parts) == set(named) and sum(map(len, parts)) == len(named)


@pytest.mark.parametrize(
    ("name", "part", "layer", "block"),
    [
        ("llm:3.mlp", "mlp", 3, 2),
        ("mid", "block", 2, 2),
        ("vision", "region", 0, 0),
        ("vision:1", "region", 0, 1),
        ("projector", "region", 0, 2),
        ("embed", "region", 0, 2),
        ("head", "region", 0, 2),  # tied with the embeddings
        ("norm", "region", 6, 2),
        ("llm:4+norm", "region", 4, 2),
    ],
)
def test_a_change_begins_where_its_first_tensor_is_used(
    pocket_layout: Layout, name: str, part: str, layer: int, block: int
) -> None:
    (unit,) = units_of([name], pocket_layout)
    assert (unit.part, unit.first_layer, unit.first_vision_block) == (part, layer, block)


@pytest.mark.slow
def test_tensors_that_no_model_has_in_memory_are_no_unit(qwen3_5_checkpoint: Path) -> None:
    layout = layout_of(qwen3_5_checkpoint)
    assert "mtp" not in [unit.name for unit in units_of(["regions"], layout)]
    if layout.carried:
        with pytest.raises(ValueError, match="unit 'mtp' has no tensor that a model holds in memory"):
            units_of(["mtp"], layout)


def test_a_variant_is_exact_at_both_ends(pocket_layout: Layout) -> None:
    (unit,) = units_of(["llm:2"], pocket_layout)
    owners = {
        (direction, alpha): Variant(end="full@0", direction=direction, unit=unit, alpha=alpha).owner
        for direction in (SUFFICIENCY, NECESSITY)
        for alpha in (0.0, 0.25, 1.0)
    }
    for alpha in (0.0, 0.25, 1.0):
        assert owners[SUFFICIENCY, alpha] == Blend(start=START, end="full@0", alpha=alpha)
        assert owners[NECESSITY, alpha] == Blend(start=START, end="full@0", alpha=1 - alpha)


def test_start_is_the_base_of_all_ends_and_each_end_of_its_own(pocket_layout: Layout) -> None:
    units = units_of(["each:3"], pocket_layout)
    assert [variant.base for variant in base_variants(ENDS)] == [START, *ENDS]
    groups = variants_of(START, ENDS, units, [0.5, 1.0], [SUFFICIENCY, NECESSITY])
    assert [len(group) for group in groups] == [1, 2, 2, 2, 2]
    assert {variant.end for group in groups[1:] for variant in group} == set(ENDS)
    groups = variants_of("full@1", ENDS, units, [0.5, 1.0], [SUFFICIENCY, NECESSITY])
    assert {variant.prefix for group in groups for variant in group} == {
        "full@1", *(f"full@1/necessity/{unit.name}/{alpha}" for unit in units for alpha in ("0.5", "1")),
    }  # fmt: skip
    assert len(variants_of("full@1", ENDS, units, [1.0], [SUFFICIENCY])) == 1


@pytest.mark.parametrize(
    ("arm", "place"),
    [
        ("only-llm3.attn", (SUFFICIENCY, "llm3.attn")),
        ("freeze-mid", (NECESSITY, "mid")),
        ("freeze-random-0", None),
        ("full", None),
        ("no-attn", None),
    ],
)
def test_an_arm_names_the_unit_that_it_trains_or_freezes(arm: str, place: tuple[str, str] | None) -> None:
    assert unit_of_arm(arm) == place
