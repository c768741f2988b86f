"""Deltas of Qwen3.5: of the matrices of linear attention too, and of what both checkpoints have."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.deltas.command import main
from models.checkpoint import open_checkpoint
from models.loading import load_model
from tests.analyze.deltas.changes import nudge, rewrite


@pytest.mark.slow
def test_energies_are_those_of_numpy_and_lost_tensors_are_said(
    mixed_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = rewrite(mixed_checkpoint, tmp_path / "end", nudge(1))
    load_model(end).save_pretrained(tmp_path / "saved")  # as a run elsewhere leaves it: without `mtp`
    measures = ["--measures", "energy", "floor", "--num_threads", "1"]
    main([str(mixed_checkpoint), str(tmp_path / "saved"), "--output_dir", str(tmp_path / "lost"), *measures])
    said = "not compared: 15 tensors that not all checkpoints have, the first is mtp.fc.weight"
    assert said in capsys.readouterr().out
    main([str(mixed_checkpoint), str(end), "--output_dir", str(tmp_path / "all"), *measures])
    assert "not compared" not in capsys.readouterr().out
    lost, whole = (pd.read_csv(tmp_path / name / "regions.csv") for name in ("lost", "all"))
    assert set(whole["region"]) - set(lost["region"]) == {"mtp"}
    before, after = open_checkpoint(mixed_checkpoint), open_checkpoint(end)
    matrices = pd.read_csv(tmp_path / "all" / "matrices.csv").set_index("tensor")
    for rest in ("linear_attn.conv1d.weight", "linear_attn.in_proj_qkv.weight", "linear_attn.out_proj.weight"):
        name = f"model.language_model.layers.3.{rest}"
        start, stop = (opened.tensor(name).to(torch.float64).numpy() for opened in (before, after))
        found = matrices.loc[name]
        assert found["energy"] == pytest.approx(np.linalg.norm(stop - start), rel=1e-5)
        assert found["relative_energy"] == pytest.approx(np.linalg.norm(stop - start) / np.linalg.norm(start), rel=1e-5)
