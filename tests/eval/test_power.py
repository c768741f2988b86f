"""python -m eval.power: tables, seeds that are needed, measured variances, and what is refused."""

import re
from pathlib import Path

import pytest

from eval.power import main
from eval.statistics.components import ARMS, START, assumed_variation, measured_variations
from eval.statistics.design import Size, detectable_difference
from tests.eval.statistics.drawn import comparison
from tracking.run import read_run
from tracking.tables import read_table, write_table


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """comparison.csv of two arms of three seeds."""
    path = tmp_path / "comparison.csv"
    write_table(path, comparison({"sft": 0, "full": 3, "mid": 3}, n=240, seed=0))
    return path


def cells(printed: str, title: str) -> dict[str, list[str]]:
    """Returns the cells of a printed table by the words at the beginning of its lines."""
    lines = printed[printed.index(title) :].splitlines()[2:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[: lines.index("")]]
    return {row[0] if len(row) == 3 else f"{row[0]} {row[1]}": row[-2:] for row in rows}


def test_given_variances_give_the_detectable_differences(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed-sd", "2", "--base-rate", "30", "--seeds", "4", "2", "--prompts", "300", "600", "--num-tests", "2"])
    found = cells(capsys.readouterr().out, "smallest difference")
    planned = assumed_variation(seed_sd=0.02, base_rate=0.3).kinds
    for kind, components in planned.items():
        for num_seeds in (2, 4):
            sizes = [
                Size(num_prompts=number, num_seeds=num_seeds, num_seeds_against=num_seeds if kind == ARMS else 0)
                for number in (300, 600)
            ]
            expected = [100 * detectable_difference(components, size, level=0.05 / 2) for size in sizes]
            assert found[f"{kind} {num_seeds}"] == [f"{value:.1f}" for value in expected]


def test_seeds_that_are_needed_stand_beside_what_no_number_of_seeds_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--seed-sd", "2", "--difference", "5", "--prompts", "100", "3000"])
    printed = capsys.readouterr().out
    (few, many), (start_few, start_many) = (cells(printed, "seeds an arm")[kind] for kind in (ARMS, START))
    assert start_few == "not reachable" and "too few prompts; more seeds do not help" in printed
    planned = assumed_variation(seed_sd=0.02, base_rate=0.5).kinds[ARMS]
    for number, num_prompts in ((int(few), 100), (int(many), 3000)):
        size = Size(num_prompts=num_prompts, num_seeds=number, num_seeds_against=number)
        fewer = Size(num_prompts=num_prompts, num_seeds=number - 1, num_seeds_against=number - 1)
        assert detectable_difference(planned, size) <= 0.05 < detectable_difference(planned, fewer)
    assert int(start_many) >= 2


def test_measured_variances_are_used_and_their_uncertainty_is_printed(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--measured", str(measured), "--seeds", "3", "--prompts", "240", "480"])
    printed = capsys.readouterr().out
    (variation,) = measured_variations(read_table(measured), metric="accuracy")
    assert printed.startswith("vision, measured on 240 prompts") and "4 degrees of freedom" in printed
    same, arms, start = variation.correlations.values()
    assert (
        f"replies to one prompt {same:.2f} (two runs of an arm), {arms:.2f} (arm against arm), {start:.2f} (arm"
        in printed
    )
    size = Size(num_prompts=480, num_seeds=3, num_seeds_against=0)
    assert (
        cells(printed, "smallest")[f"{START} 3"][1]
        == f"{100 * detectable_difference(variation.kinds[START], size):.1f}"
    )
    main(["--measured", str(measured), "--seeds", "3", "--prompts", "240", "480", "--seed-sd", "9"])
    wider = cells(capsys.readouterr().out, "smallest")
    assert float(wider[f"{ARMS} 3"][0]) > float(cells(printed, "smallest")[f"{ARMS} 3"][0])


def test_the_measured_number_of_prompts_is_among_the_planned_ones(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--measured", str(measured)])
    assert "200 prompts  240 prompts  500 prompts" in capsys.readouterr().out


def test_the_table_is_written_where_a_folder_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed-sd", "2", "--difference", "5", "--seeds", "2", "3", "--prompts", "100", "500"]
    main(words)
    assert list(tmp_path.iterdir()) == []
    main([*words, "--output-dir", str(tmp_path / "power")])
    table = read_table(tmp_path / "power" / "power.csv")
    assert read_run(tmp_path / "power")["status"] == "finished"
    assert len(table) == 2 * 2 * 2
    row = table[(table["comparison"] == ARMS) & (table["num_seeds"] == 3) & (table["num_prompts"] == 500)].iloc[0]
    planned = assumed_variation(seed_sd=0.02, base_rate=0.5).kinds[ARMS]
    size = Size(num_prompts=500, num_seeds=3, num_seeds_against=3)
    assert row["detectable"] == pytest.approx(detectable_difference(planned, size), rel=1e-5)
    assert row["difference"] == 0.05 and row["seeds_needed"] > 3
    assert capsys.readouterr().out.rstrip().endswith("power.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected seed_sd, .* or measured"),
        (["--seed-sd", "2", "--seeds", "1", "3"], "seeds has 1; expected 2 or more"),
        (["--seed-sd", "-2"], "seed_sd is -2.0; it must be at least 0"),
        (["--seed-sd", "2", "--base-rate", "100"], "base_rate is 100.0; expected a percentage"),
        (["--seed-sd", "2", "--difference", "0"], "difference is 0.0; expected points above 0"),
        (["--seed-sd", "2", "--ability", "vision"], "ability 'vision' is given without measured"),
        (["--seed-sd", "2", "--level", "5"], "level is 5.0; expected a number between 0 and 1"),
        (["--seed-sd", "2", "--power", "0.01"], "power is 0.01; expected a number between level and 1"),
        (["--seed-sd", "2", "--num-tests", "0"], "num_tests is 0; it must be at least 1"),
        (["--seed-sd", "2", "--prompts", "1"], r"prompts is \[1\]; expected numbers from 2 up"),
        (["--measured", "nowhere.csv"], "nowhere.csv does not exist"),
        (["--measured", "nowhere.csv", "--base-rate", "50"], "base_rate is given with measured"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        main(words)
    assert "\n" not in str(found.value)


def test_a_table_that_is_not_a_comparison_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("model,accuracy\nsft,0.5\n")
    with pytest.raises(ValueError, match=r"scores\.csv has no column 'task': an older eval\.compare wrote it"):
        main(["--measured", str(path)])
    for content in (b"", b"a,b\n1,2\n1,2,3\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scores\.csv is not a CSV table; expected one that eval\.compare wrote"):
            main(["--measured", str(path)])
