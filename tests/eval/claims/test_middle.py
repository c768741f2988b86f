"""The claim that middle layers suffice, judged by a layer sweep's table."""

from pathlib import Path

import pandas as pd
import pytest

from eval.claims.command import main
from tracking.tables import read_table

HEAD = {"task": "test", "num_middle": 2, "num_other": 4, "n": 300, "num_seeds": 4}


def write_middle(path: Path, *rows: tuple[str, str, float, float]) -> Path:
    """Writes ability, direction, difference and corrected p-value of each row; intervals of 4 points."""
    table = [
        {**HEAD, "ability": ability, "direction": direction, "difference": difference, "low": difference - 0.02,
         "high": difference + 0.02, "p": p / 2, "p_holm": p}
        for ability, direction, difference, p in rows
    ]  # fmt: skip
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def test_each_ability_gets_its_verdict_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_middle(
        tmp_path / "middle.csv",
        ("vision", "sufficiency", 0.28, 1e-6),
        ("vision", "necessity", -0.2, 1e-6),
        ("reasoning", "sufficiency", -0.1, 0.01),
        ("vision-to-reasoning", "sufficiency", 0.01, 0.4),
    )
    main(["--layers", str(path), "--output-dir", str(tmp_path / "claims")])
    table = read_table(tmp_path / "claims" / "middle_layers.csv").set_index("ability")
    assert dict(table["verdict"]) == {
        "vision": "supported",
        "reasoning": "contradicted",
        "vision-to-reasoning": "not decidable at this n",
    }
    assert (table.loc["vision", "low"], table.loc["vision", "high"]) == (0.26, 0.30)
    page = (tmp_path / "claims" / "claims.html").read_text()
    printed = capsys.readouterr().out
    assert "2607.01232" in page and page.count("2 middle layers with 4 others") == 3
    assert "vision (test): supported: +28.0" in printed and "4 training seeds" in printed


def test_tables_that_cannot_decide_the_claim_are_refused(tmp_path: Path) -> None:
    path = write_middle(tmp_path / "middle.csv", ("vision", "necessity", 0.2, 0.01))
    arguments = ["--output-dir", str(tmp_path / "claims"), "--layers"]
    with pytest.raises(ValueError, match="such as each-only"):
        main([*arguments, str(path)])
    pd.DataFrame({"task": ["test"]}).to_csv(path)
    with pytest.raises(ValueError, match="no column 'ability'"):
        main([*arguments, str(path)])
    with pytest.raises(ValueError, match="does not exist"):
        main([*arguments, str(tmp_path / "layers.csv")])
    assert not (tmp_path / "claims").exists()
