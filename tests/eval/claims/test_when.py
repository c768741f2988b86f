"""The statements of arXiv 2603.01301, judged by tables whose differences are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.claims.command import main
from eval.statistics.intervals import holm
from eval.support.gaps import DIFFERENCE, SOMETIMES_LESS_NEVER, WITH, WITHOUT
from tracking.tables import read_table


def numbers(value: float, half: float = 0.02) -> dict[str, Any]:
    """A difference with its interval; significant if that excludes zero."""
    return {
        "low": value - half, "high": value + half, "p": 1e-6 if abs(value) > half else 0.4, "n": 200, "num_seeds": 2,
        "scope": "training", "equivalent_within": abs(value) + 0.8 * half,
    }  # fmt: skip


def write_support(folder: Path, *, at_all: float = 0.0, without: float = 0.0) -> Path:
    folder.mkdir()
    head = {"task": "all", "ability": "all", "modality": "all", "against": "sft"}
    changes = [
        {**head, "model": "base", "metric": "pass@k", "k": 8, "value": -0.2, **numbers(-0.2)},
        {**head, "model": "full", "metric": "pass@k", "k": 1, "value": 0.15, **numbers(0.15)},
        {**head, "model": "full", "metric": "pass@k", "k": 8, "value": at_all, **numbers(at_all)},
        {**head, "model": "full", "metric": "gap", "k": 8, "value": -0.12, **numbers(-0.12)},
        {**head, "modality": "x", "task": "t", "model": "full", "metric": "gap", "k": 8, "value": 9, **numbers(9)},
    ]
    gains = {"all": 0.1, WITH: 0.2, WITHOUT: without, DIFFERENCE: 0.2 - without}
    gaps = [{**head, "modality": name, "model": "full", "gain": own, **numbers(own)} for name, own in gains.items()]
    bins = [{**head, "model": "full", "bin": SOMETIMES_LESS_NEVER, "gain": 0.01, **numbers(0.01, half=0.2)}]
    for name, rows in (("changes", changes), ("gaps", gaps), ("bins", bins)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder


def write_transfer(folder: Path, others: float, own_less_others: float) -> Path:
    folder.mkdir()
    asked = (("rl", "others", others), ("rl", "own less others", own_less_others), ("sft", "others", -0.3))
    pd.DataFrame(
        [
            {"method": method, "question": question, "trained_on": "pooled", "difference": value, **numbers(value)}
            for method, question, value in asked
        ]
    ).to_csv(folder / "contrasts.csv", index=False)
    return folder


def write_tower(folder: Path, difference: float) -> Path:
    """Writes a tower whose best layer is 3, and encoders of which dino is the better one."""
    folder.mkdir()
    scores = [("sft", "3", 0.8), ("sft", "5", 0.7), ("dino", "11", 0.9), ("clip", "7", 0.6), ("random", "3", 0.95)]
    pd.DataFrame(
        [{"probe": "class", "model": model, "layer": layer, "cv_accuracy": own} for model, layer, own in scores]
    ).to_csv(folder / "tower.csv", index=False)
    compared = (("3", "dino", difference), ("5", "dino", 0.5), ("3", "clip", 0.5), ("5", "clip", 0.5))
    rows = [
        {"probe": "class", "layer": layer, "model": "sft", "against": against, "difference": value,
         "family": "class, encoders", **numbers(value)}
        for layer, against, value in compared
    ]  # fmt: skip
    rows.append({**rows[0], "against": "random", "difference": 0.5, "family": "class, random"})
    pd.DataFrame(rows).to_csv(folder / "differences.csv", index=False)
    return folder


def verdicts(folder: Path) -> dict[str, str]:
    table = read_table(folder / "when_rl_helps.csv")
    return dict(zip(table["statement"], table["verdict"], strict=True))


def test_each_statement_is_judged_by_its_own_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support = write_support(tmp_path / "support")
    transfer = write_transfer(tmp_path / "transfer", 0.08, 0.07)
    tower = write_tower(tmp_path / "tower", -0.01)
    arguments = ["--support", str(support), "--transfer", str(transfer), "--tower", str(tower)]
    main([*arguments, "--output-dir", str(tmp_path / "claims")])
    undecided = "RL helps more on prompts that the start sometimes answers than on those it never does"
    contradicted = "RL on one modality helps on the others as much as on its own"
    assert verdicts(tmp_path / "claims") == {
        "The vision tower sees as much as a vision-only encoder": "supported",
        "Supervised fine-tuning gives support": "supported",
        "RL raises accuracy@1": "supported",
        "RL does not raise pass@K": "supported",
        "RL narrows the gap between pass@K and accuracy@1": "supported",
        "RL helps where the start has support": "supported",
        "RL helps little where the start has no support": "supported",
        "RL helps more with support than without": "supported",
        undecided: "not decidable at this n",
        "RL on one modality helps on the others": "supported",
        contradicted: "contradicted",
    }
    table = read_table(tmp_path / "claims" / "when_rl_helps.csv").set_index("statement")
    sft = table.loc["Supervised fine-tuning gives support"]
    assert [sft[name] for name in ("difference", "low", "high", "model", "against")] == [0.2, 0.18, 0.22, "sft", "base"]
    assert table.iloc[0]["difference"] == -0.01 and table.iloc[0]["against"] == "dino"
    assert (table["p_holm"] >= table["p"]).all()
    page, printed = (tmp_path / "claims" / "claims.html").read_text(), capsys.readouterr().out
    assert "When does RL help?" in page and page.count("as much as on its own") == 1
    assert "RL raises accuracy@1 (full with sft): supported: +15.0 [+13.0, +17.0]" in printed


def test_results_against_the_paper_contradict_it_and_missing_ones_are_not_measured(tmp_path: Path) -> None:
    support = write_support(tmp_path / "support", at_all=0.2, without=0.18)
    tower = write_tower(tmp_path / "tower", -0.2)
    main(["--support", str(support), "--tower", str(tower), "--output-dir", str(tmp_path / "claims")])
    found = verdicts(tmp_path / "claims")
    assert found["The vision tower sees as much as a vision-only encoder"] == "contradicted"
    assert found["RL does not raise pass@K"] == "contradicted"
    assert found["RL helps little where the start has no support"] == "contradicted"
    assert found["RL on one modality helps on the others"] == "not measured"


def test_a_difference_has_the_corrected_p_value_of_its_table(tmp_path: Path) -> None:
    support = write_support(tmp_path / "support")
    pd.read_csv(support / "gaps.csv").assign(p_holm=0.0321).to_csv(support / "gaps.csv", index=False)
    main(["--support", str(support), "--output-dir", str(tmp_path / "claims")])
    table = read_table(tmp_path / "claims" / "when_rl_helps.csv").set_index("statement")
    assert table.loc["RL helps more with support than without", "p_holm"] == 0.0321
    alone = table[table["p"].notna() & (table["p_holm"] != 0.0321)]
    np.testing.assert_allclose(alone["p_holm"], holm(alone["p"].to_numpy(float)))


def test_no_modality_stands_for_all_if_there_is_no_mean_over_them(tmp_path: Path) -> None:
    """Abilities with different numbers of samples have no common pass@K, so `changes.csv` has no row of all."""
    support = write_support(tmp_path / "support")
    changes = pd.read_csv(support / "changes.csv").assign(task="t")
    for modalities, verdict in ((("x", "y"), "not measured"), (("x",), "supported")):
        rows = [changes.assign(modality=modality) for modality in modalities]
        pd.concat(rows).to_csv(support / "changes.csv", index=False)
        main(["--support", str(support), "--output-dir", str(tmp_path / verdict)])
        assert verdicts(tmp_path / verdict)["RL raises accuracy@1"] == verdict


def test_folders_of_other_commands_are_refused(tmp_path: Path) -> None:
    transfer = write_transfer(tmp_path / "transfer", 0.1, 0.1)
    out = ["--output-dir", str(tmp_path / "claims")]
    with pytest.raises(ValueError, match=r"has no changes.csv; expected .* eval.support --by modality"):
        main(["--support", str(transfer), *out])
    support = write_support(tmp_path / "support")
    pd.read_csv(support / "gaps.csv").drop(columns="equivalent_within").to_csv(support / "gaps.csv")
    with pytest.raises(ValueError, match=r"no column 'equivalent_within': an older eval.support wrote it"):
        main(["--support", str(support), *out])
    changes = write_support(tmp_path / "changes") / "changes.csv"
    table = pd.read_csv(changes)
    for damaged, message in ((table.drop(columns="value"), "no column 'value'"), (table.iloc[:0], "has no rows")):
        damaged.to_csv(changes, index=False)
        with pytest.raises(ValueError, match=message):
            main(["--support", str(changes.parent), *out])
    assert not (tmp_path / "claims").exists()
