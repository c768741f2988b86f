"""Does the page of a study by modality say what its tables say, and what is missing?"""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analyze.modalities.command import main
from analyze.modalities.inputs import on_modality
from eval.support.command import main as support
from tests.analyze.modalities.written import GAINS, LOOKS, UNSURE, gap_rows, tower_rows, write_output, write_study
from tests.eval.support.test_modalities import RATES, write_model
from tracking.tables import read_table, write_table


def run(study: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    main([str(study), "--output-dir", str(output)])
    return (output / "modalities.html").read_text(), capsys.readouterr().out


def test_each_modality_has_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, said = run(write_study(tmp_path / "study"), tmp_path / "out", capsys)
    answers = read_table(tmp_path / "out" / "answers.csv").set_index("modality")
    assert list(answers.index) == list(LOOKS)
    assert dict(answers["model"]) == {look: f"data-{look}" for look in LOOKS}
    assert dict(answers["gain"]) == pytest.approx(GAINS)
    expected = {"outline": "helped", "speckle": "helped", UNSURE: "not decidable", "stained": "no gain"}
    assert dict(answers["verdict"]) == expected
    assert dict(answers["start_verdict"])["stained"] == "no support"
    assert "2 of 4: RL helped in outline (support found) and speckle (support found); it changed less than 5" in said
    assert "gained more where the start has support: +16.0 points" in said
    assert "difference +15.5 points [+12.5, +18.5] (corrected p = " in said and "n = 400, 4 seeds)" in said
    assert page.index("When did RL help?") < page.index("<table") < page.index('<section id="vision">')
    first_screen = page.partition('<section id="vision">')[0]
    assert "80.0 %" in first_screen and "65.0 %" in first_screen  # the start's tower; pixels come first in the table
    assert page.count("<svg") == 7  # tower, support, SFT, gain, bins, two matrices
    assert "http" not in page.replace("http://www.w3.org", "")


def test_every_part_has_its_numbers_control_and_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, said = run(write_study(tmp_path / "study"), tmp_path / "out", capsys)
    assert page.count("<b>Limit.</b>") == page.count("<h3") == 8
    assert page.count("<b>Control.</b>") == 7  # RL and SFT on the same data are each other's control
    assert "sft’s tower is significantly better in 0 of 4 comparisons" in said
    assert "sft has support in outline (+45.0 points [+42.0, +48.0])" in said
    assert "in 2 of 4 cells on the modality that it was trained on" in said
    assert "Own modality less the others: +8.0 points [+3.0, +13.0] (corrected p = 0.010, n = 250, 4 seeds)" in said
    assert 'supported">supported' in page and 'soft">not measured' in page


def test_new_tables_give_a_new_page_and_equal_ones_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study")
    first, _ = run(study, tmp_path / "out", capsys)
    written = (tmp_path / "out" / "modalities.html").stat().st_mtime_ns
    assert run(study, tmp_path / "out", capsys)[0] == first
    assert (tmp_path / "out" / "modalities.html").stat().st_mtime_ns == written
    rows = [row | {"gain": -0.4, "low": -0.43, "high": -0.37, "p_holm": 1e-9} for row in gap_rows()]

    write_table(study / "support" / "gaps.csv", pd.DataFrame(rows))
    assert "it hurt in outline" in run(study, tmp_path / "out", capsys)[0]


def test_towers_on_pictures_with_findings_are_compared_in_macro_auc_at_the_layer_that_auc_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "study")
    scores, differences = (pd.DataFrame(rows) for rows in tower_rows())
    many = scores["modality"] == "speckle"
    scores.loc[many, "cv_auc"] = [0.9 if layer == "1" else 0.6 for layer in scores.loc[many, "layer"]]
    write_table(study / "tower" / "tower.csv", scores)
    areas = differences[differences["modality"] == "speckle"].copy()
    areas["difference"] = [0.21 if layer == "1" else 0.11 for layer in areas["layer"]]
    write_table(study / "tower" / "auc.csv", areas)
    page, _ = run(study, tmp_path / "out", capsys)
    part = page.partition("Pictures with several findings</h3>")[2].partition("<h3")[0]
    assert "in 3 of" not in part and part.count("+21.0") >= 3 and "+11.0" not in part
    accuracy = page.partition("Towers and vision-only encoders</h3>")[2].partition("<h3")[0]
    assert "<td>speckle</td><td>sft</td><td>1</td>" in re.sub(r"\s*<td[^>]*>", "<td>", accuracy)
    assert "<td>outline</td><td>sft</td><td>merger</td>" in re.sub(r"\s*<td[^>]*>", "<td>", accuracy)


def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study")
    for name in ("tower", "transfer", "statements"):
        shutil.rmtree(study / name)
    page, said = run(study, tmp_path / "out", capsys)
    assert "the towers were not probed" in said and "no transfer.csv" in said
    assert "has no when_rl_helps.csv" in page and page.count("<svg") == 4
    shutil.rmtree(study / "support")
    with pytest.raises(ValueError, match=r"expected the output of|no support.csv of"):
        main([str(study), "--output-dir", str(tmp_path / "none")])
    write_output(study / "support", "eval.support", {"support": [{"task": "t", "ability": "a", "metric": "gap"}]})
    with pytest.raises(ValueError, match=r"support.csv has no column 'modality'"):
        main([str(study), "--output-dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_the_model_of_a_modality_is_the_one_trained_on_it() -> None:
    models = ["base", "data-all", "data-chest-x-ray"]
    assert on_modality(models, "Chest X-Ray") == "data-chest-x-ray"
    assert on_modality(models, "Fundus Camera") == "data-all"
    assert on_modality(["freeze-mid", "full"], "speckle") == "full" and on_modality([], "speckle") is None


@pytest.mark.slow
def test_the_page_reads_the_tables_that_eval_support_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [f"sft={write_model(tmp_path / 'sft', RATES, seed=0)}"]
    for seed in (0, 1, 2):
        folder = write_model(tmp_path / f"all{seed}", {"seen": 0.8, "half seen": 0.5, "unseen": 0.0}, seed=1 + seed)
        models.append(f"data-all@{seed}={folder}")
    support([*models, "--by", "modality", "--output-dir", str(tmp_path / "study" / "support")])
    page, said = run(tmp_path / "study", tmp_path / "out", capsys)
    assert "2 of 3: RL helped in half seen (support found) and seen (support found)" in said
    assert "on prompts that the start sometimes solves than on prompts that it never does" in page
    assert page.count("<svg") == 3 and "What SFT added" not in page
