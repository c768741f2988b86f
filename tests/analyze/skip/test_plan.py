"""Configurations of the skip probe: what their names leave out, and which names are refused."""

import numpy as np
import pytest

from analyze.skip.plan import KINDS, make_configurations
from models.blocks import make_partition
from models.layout import Layout


def test_kinds_leave_out_every_layer_block_attention_and_mlp_in_turn(pocket_layout: Layout) -> None:
    configurations = make_configurations(KINDS, pocket_layout, make_partition(6))
    assert [c.name for c in configurations[:8]] == ["none", *(f"llm:{layer}" for layer in range(6)), "early"]
    assert len(configurations) == 1 + 6 + 3 + 6 + 6
    by_name = {c.name: c.plan(6) for c in configurations}
    both, attention, mlp = np.eye(6, dtype=bool)[:, :, None] & np.array([[[1, 1]], [[1, 0]], [[0, 1]]], bool)[:, None]
    assert not by_name["none"].any()
    for layer in range(6):
        assert (by_name[f"llm:{layer}"] == both[layer]).all()
        assert (by_name[f"llm:{layer}.attn"] == attention[layer]).all()
        assert (by_name[f"llm:{layer}.mlp"] == mlp[layer]).all()
    assert (by_name["mid"] == (by_name["llm:2"] | by_name["llm:3"])).all()


def test_any_expression_of_decoder_layers_is_a_configuration(pocket_layout: Layout) -> None:
    _, window, narrowed = make_configurations(["llm:1-4", "late.mlp"], pocket_layout, make_partition(6, cuts=[2, 5]))
    assert window.layers == [1, 2, 3, 4] and len(window.omitted) == 8
    assert narrowed.omitted == {(5, "mlp")}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["vision"], "'vision' names vision, which has no skip connection"),
        (["llm:6"], "this model has decoder layers 0-5"),
        (["layer"], "block expression 'layer' is unknown"),
        (["layers", "llm:3"], "'llm:3' is asked for twice"),
    ],
)
def test_what_is_no_part_of_the_decoder_is_refused(asked: list[str], message: str, pocket_layout: Layout) -> None:
    with pytest.raises(ValueError, match=message):
        make_configurations(asked, pocket_layout, make_partition(6))
