"""Deltas of a family whose files hold buffers: compared as all tensors are, clip bounds without a limit left out."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.deltas.command import main
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from tests.models.damage import read_tensors, write_tensors

SCALAR = "model.language_model.layers.3.layer_scalar"
UNLIMITED = "model.vision_tower.encoder.layers.1.mlp.gate_proj.input_max"
LIMITED = "model.vision_tower.encoder.layers.0.self_attn.q_proj.input_max"


@pytest.mark.slow
def test_buffers_are_measured_and_unlimited_bounds_are_left_out(gemma4_checkpoint: Path, tmp_path: Path) -> None:
    end = Path(shutil.copytree(gemma4_checkpoint, tmp_path / "end"))
    tensors = read_tensors(end)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in list(tensors.items()):
        if name == SCALAR or tensor.dim() > 1:
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    write_tensors(end, tensors)
    arguments = [str(gemma4_checkpoint), str(end), "--output-dir", str(tmp_path / "deltas")]
    main([*arguments, "--measures", "energy", "floor"])
    table = pd.read_csv(tmp_path / "deltas" / "matrices.csv").set_index("tensor")
    start, layout = open_checkpoint(gemma4_checkpoint), layout_of(gemma4_checkpoint)
    unlimited = {p.name for p in layout if p.buffer and bool(start.tensor(p.name).isinf().all())}
    assert set(table.index) == set(layout.parameters) - unlimited and UNLIMITED in unlimited
    assert LIMITED in table.index and table.loc[LIMITED, "energy"] == 0
    for name, row in table.iterrows():
        change = tensors[str(name)].double().numpy() - start.tensor(str(name)).double().numpy()
        assert row["energy"] == pytest.approx(float(np.sqrt((change**2).sum())), rel=1e-5), name
    assert table.loc[SCALAR, "energy"] > 0 and table.loc[SCALAR, "block"] == "mid"


def test_an_unlimited_bound_that_changed_is_refused(gemma4_checkpoint: Path, tmp_path: Path) -> None:
    end = Path(shutil.copytree(gemma4_checkpoint, tmp_path / "end"))
    tensors = read_tensors(end)
    tensors[UNLIMITED] = torch.tensor(3.0)
    write_tensors(end, tensors)
    with pytest.raises(ValueError, match="input_max' holds 1 values of 1 that are NaN or infinite"):
        main([str(gemma4_checkpoint), str(end), "--output-dir", str(tmp_path / "deltas"), "--measures", "energy"])
