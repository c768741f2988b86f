"""The last lines of a measurement of weight changes."""

from pathlib import Path

import pandas as pd

from analyze.deltas.summary import summary


def test_each_phase_has_its_changes_by_block_in_the_models_order_and_its_verdicts(tmp_path: Path) -> None:
    rows = [
        {
            "phase": phase, "seed": seed, "block": block, "relative_energy": 0.0123, "changed_frac": 0.5,
            "num_identical": 1, "num_at_floor": 2, "num_above_floor": 3,
        }
        for phase, seed in (("sft", None), ("full", 0))
        for block in ("vision", "early", "norm")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "blocks.csv", index=False)
    lines = summary(tmp_path)
    assert lines[0].split()[-3:] == ["early", "vision", "norm"]
    assert [line.split() for line in lines[1:3]] == [["sft", *["1.23"] * 3], ["full@0", *["1.23"] * 3]]
    assert lines[4].split() == ["sft", "50", "50", "50"]
    assert lines[-1] == "tensors of full@0: 3 identical, 6 at the floor of rounding, 9 above it"
