from collections import Counter

import pytest

from models.blocks import BLOCKS, REGIONS, Partition, block_names, format_layers, make_partition, resolve
from models.families import QWEN2_5_VL
from models.layout import Layout, layout_from_shapes

ATTENTION = (
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
    "input_layernorm.weight",
)
MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight")
NUM_LAYERS, NUM_VISION_BLOCKS = 7, 3
EMBED = {"model.language_model.embed_tokens.weight"}
PARTITION = Partition(NUM_LAYERS, (2, 5))


def layer_names(*layers: int, parts: tuple[str, ...] = ATTENTION + MLP) -> set[str]:
    """Decoder parameter names written out from the published ones, independently of the resolver."""
    return {f"model.language_model.layers.{layer}.{part}" for layer in layers for part in parts}


def vision_names(*blocks: int) -> set[str]:
    parts = [f"norm{n}.weight" for n in (1, 2)]
    parts += [f"{linear}.{kind}" for linear in ("attn.qkv", "attn.proj") for kind in ("weight", "bias")]
    parts += [f"mlp.{linear}_proj.{kind}" for linear in ("gate", "up", "down") for kind in ("weight", "bias")]
    return {f"model.visual.blocks.{block}.{part}" for block in blocks for part in parts}


PATCH_EMBED = {"model.visual.patch_embed.proj.weight"}
PROJECTOR = {
    "model.visual.merger.ln_q.weight",
    "model.visual.merger.mlp.0.weight",
    "model.visual.merger.mlp.0.bias",
    "model.visual.merger.mlp.2.weight",
    "model.visual.merger.mlp.2.bias",
}
NORM, HEAD = {"model.language_model.norm.weight"}, {"lm_head.weight"}


def make_layout(*, tied: bool) -> Layout:
    names = layer_names(*range(NUM_LAYERS)) | vision_names(*range(NUM_VISION_BLOCKS))
    names |= PATCH_EMBED | PROJECTOR | EMBED | NORM | (set() if tied else HEAD)
    return layout_from_shapes(QWEN2_5_VL, dict.fromkeys(sorted(names), (2, 3)), tied=tied)


UNTIED, TIED = make_layout(tied=False), make_layout(tied=True)


@pytest.mark.parametrize(
    ("num_layers", "partition", "blocks"),
    [
        (28, "paper", [range(10), range(10, 19), range(19, 28)]),
        (28, "thirds", [range(9), range(9, 18), range(18, 28)]),
        (36, "thirds", [range(12), range(12, 24), range(24, 36)]),
        (36, "paper", [range(12), range(12, 24), range(24, 36)]),
        (32, "thirds", [range(10), range(10, 21), range(21, 32)]),
        (6, "paper", [range(2), range(2, 4), range(4, 6)]),
        (3, "thirds", [range(1), range(1, 2), range(2, 3)]),
    ],
)
def test_named_partitions_have_their_published_ranges(num_layers: int, partition: str, blocks: list[range]) -> None:
    made = make_partition(num_layers, partition=partition)
    assert [made.layers(block) for block in BLOCKS] == blocks
    for block, layers in zip(BLOCKS, blocks, strict=True):
        assert {made.block_of(layer) for layer in layers} == {block}


def test_explicit_cuts_stand_where_they_are_put() -> None:
    partition = make_partition(28, cuts=[8, 20])
    assert [partition.layers(block) for block in BLOCKS] == [range(8), range(8, 20), range(20, 28)]
    assert str(partition) == "early 0-7, mid 8-19, late 20-27"


@pytest.mark.parametrize("cuts", [(0, 9), (9, 9), (20, 8), (9, 28), (9, 40), (-3, 9)])
def test_cuts_that_leave_a_block_empty_are_refused(cuts: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"do not divide 28 layers into three blocks; expected 0 < first < second < 28"
    ):
        make_partition(28, cuts=cuts)


@pytest.mark.parametrize("cuts", [[9], [5, 10, 15]])
def test_other_than_two_cuts_are_refused(cuts: list[int]) -> None:
    with pytest.raises(ValueError, match=f"has {len(cuts)} numbers; expected two"):
        make_partition(28, cuts=cuts)


def test_unknown_partition_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'quarters' is unknown; expected one of thirds, paper, or cuts"):
        make_partition(28, partition="quarters")


def test_model_too_shallow_for_three_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide 2 layers"):
        make_partition(2)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("early", layer_names(0, 1)),
        ("mid", layer_names(2, 3, 4)),
        ("late", layer_names(5, 6)),
        ("early.attn", layer_names(0, 1, parts=ATTENTION)),
        ("late.mlp", layer_names(5, 6, parts=MLP)),
        ("llm", layer_names(*range(7))),
        ("llm.attn", layer_names(*range(7), parts=ATTENTION)),
        ("llm:4", layer_names(4)),
        ("llm:1-3", layer_names(1, 2, 3)),
        ("llm:3-3", layer_names(3)),
        ("llm:0-6", layer_names(*range(7))),
        ("llm:6.attn", layer_names(6, parts=ATTENTION)),
        ("llm:1-3.mlp", layer_names(1, 2, 3, parts=MLP)),
        ("vision", vision_names(0, 1, 2) | PATCH_EMBED),
        ("vision:1", vision_names(1)),
        ("vision:0-2", vision_names(0, 1, 2)),
        ("projector", PROJECTOR),
        ("embed", EMBED),
        ("norm", NORM),
        ("head", HEAD),
    ],
)
def test_expression_names_exactly_its_parameters(expression: str, names: set[str]) -> None:
    selection = resolve([expression], UNTIED, PARTITION)
    assert set(selection.names) == names and len(selection.names) == len(names)


def test_several_expressions_name_their_union_once_each_in_the_models_order() -> None:
    selection = resolve(["llm:3", "mid", "vision:0", "llm:2-4", "mid"], UNTIED, PARTITION)
    expected = layer_names(2, 3, 4) | vision_names(0)
    assert selection.names == tuple(name for name in UNTIED.parameters if name in expected)
    assert selection.expressions == ("llm:3", "mid", "vision:0", "llm:2-4", "mid")


def test_no_expression_names_nothing() -> None:
    assert resolve([], UNTIED, PARTITION).names == ()


def test_attention_and_mlp_divide_every_layer_of_a_real_model(pocket_layout: Layout) -> None:
    partition = make_partition(pocket_layout.num_layers)
    for layer in range(pocket_layout.num_layers):
        whole, attention, mlp = (
            set(resolve([f"llm:{layer}{part}"], pocket_layout, partition).names) for part in ("", ".attn", ".mlp")
        )
        assert attention | mlp == whole and not attention & mlp and attention and mlp


def test_every_parameter_of_a_real_model_is_in_exactly_one_block_or_region(pocket_layout: Layout) -> None:
    partition = make_partition(pocket_layout.num_layers)
    count: Counter[str] = Counter()
    for expression in (*BLOCKS, *REGIONS):
        if expression == "head" and pocket_layout.tied:
            continue
        names = resolve([expression], pocket_layout, partition).names
        count.update(names)
        assert {block_names(pocket_layout.parameters[name], partition) for name in names} == {expression}
    assert set(count) == set(pocket_layout.parameters) and set(count.values()) == {1}


def test_tied_head_is_the_embedding_and_says_so() -> None:
    for expression in ("head", "embed"):
        selection = resolve([expression], TIED, PARTITION)
        assert set(selection.names) == EMBED
        assert len(selection.notes) == 1 and "embed and head are one tensor" in selection.notes[0]
    assert not resolve(["mid", "norm"], TIED, PARTITION).notes
    assert not resolve(["head", "embed"], UNTIED, PARTITION).notes


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("erly", "early"),
        ("middle", "mid"),
        ("Mid", "mid"),
        ("lat", "late"),
        ("lllm", "llm"),
        ("vison", "vision"),
        ("projection", "projector"),
        ("embedding", "embed"),
        ("norms", "norm"),
        ("lm_head", "head"),
        ("mdi.attn", "mid.attn"),
        ("lllm:3", "llm"),
    ],
)
def test_misspelt_expression_names_the_nearest(typo: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'") as caught:
        resolve(["early", typo], UNTIED, PARTITION)
    assert repr(typo) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("llm:7", "out of range: this model has decoder layers 0-6"),
        ("llm:5-7", "out of range: this model has decoder layers 0-6"),
        ("llm:4-2", "out of range"),
        ("vision:3", "out of range: this model has vision blocks 0-2"),
        ("mid:0-1", "only llm and vision take a range, such as llm:0-8"),
        ("embed:0", "only llm and vision take a range, such as llm:0-8"),
        ("vision.attn", "only decoder layers can be narrowed to .attn or .mlp"),
        ("head.mlp", "only decoder layers can be narrowed to .attn or .mlp"),
        ("early.atn", "part 'atn' is unknown.*expected attn or mlp"),
        ("llm:1-3.mpl", "part 'mpl' is unknown.*expected attn or mlp"),
        ("llm:", "is unknown; did you mean 'llm'"),
        ("llm:a-b", "is unknown"),
        ("", "is unknown"),
        ("mid late", "is unknown"),
    ],
)
def test_malformed_expression_is_refused_with_the_reason(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve([expression], UNTIED, PARTITION)
    assert repr(expression) in str(caught.value)


def test_expression_that_matches_nothing_is_refused() -> None:
    without_head = layout_from_shapes(QWEN2_5_VL, dict.fromkeys(layer_names(*range(7)), (2, 3)), tied=False)
    with pytest.raises(ValueError, match="'head' matches no parameter of this model"):
        resolve(["head"], without_head, PARTITION)


def test_layers_are_printed_as_papers_do() -> None:
    assert format_layers([]) == ""
    assert format_layers([4]) == "4"
    assert format_layers({12, 3, 1, 2, 0}) == "0-3, 12"
