"""The last lines of a measurement of attention: the share on the image by block, and its shift."""

from pathlib import Path

import pandas as pd

from analyze.attention.summary import summary


def test_shares_are_means_over_a_blocks_layers_and_shifts_the_pooled_ones(tmp_path: Path) -> None:
    place = {"mode": "teacher-forced", "task": "test", "ability": "vision", "part": "reply", "measure": "vision"}
    shares = {"early": [0.2, 0.3], "mid": [0.1, 0.1], "late": [0.0, 0.05]}
    attention = [
        place | {"model": model, "seed": "", "head": head, "block": block, "mean": share + 0.1 * (model == "rl")}
        for model in ("sft", "rl")
        for block, values in shares.items()
        for share in values
        for head in ("mean", "0")
    ]
    attention += [{**row, "mode": "own", "mean": 0.9} for row in attention]
    pd.DataFrame(attention).to_csv(tmp_path / "attention.csv", index=False)
    shifts = [
        place | {"model": "rl", "against": "sft", "block": block, "seed": seed, "p_holm": 0.01}
        | {"difference": 0.1, "low": 0.05, "high": 0.15}
        for block in ("early", "all")
        for seed in ("0", "1", "pooled")
    ]  # fmt: skip
    pd.DataFrame(shifts).to_csv(tmp_path / "blocks.csv", index=False)
    controls = [{"control": "sums", "passed": True}, {"control": "tokens", "passed": False}]
    pd.DataFrame(controls).to_csv(tmp_path / "controls.csv", index=False)
    head, _, sft, rl, last = summary(tmp_path)
    assert head.startswith("teacher-forced: ")
    assert sft.split() == ["test", "sft", "25.0", "10.0", "2.5"]
    assert rl.split() == ["test", "rl", "35.0", "20.0", "12.5", "+10.0", "[+5.0,", "+15.0]", "to", "sft", "0.010"]
    assert last == "controls FAILED: 1 of 2 (sums, tokens)"
