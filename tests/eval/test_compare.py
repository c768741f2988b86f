"""Comparisons of evaluation directories: tables, tests per seed, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from eval.compare import COLUMNS, METRICS, Entry, compare, main, parse_entry
from eval.statistics import holm
from tracking.run import open_run

SETTINGS = {"tasks": {"test": "abc"}, "prompt_style": "plain", "max_new_tokens": 24, "dtype": "float32"}
NUM_SAMPLES = 60


def write_evaluation(
    directory: Path,
    statuses: dict[str, list[str]],
    *,
    ill_formed: tuple[int, ...] = (),
    settings: dict[str, object] | None = None,
    first_id: int = 0,
) -> Path:
    """Writes a finished evaluation with the given statuses per ability, as eval.run leaves one."""
    run_settings = {**SETTINGS, "model": str(directory), "model_fingerprint": str(directory), **(settings or {})}
    with open_run(directory, command="eval.run", settings=run_settings):
        lines = []
        for ability, values in statuses.items():
            for index, status in enumerate(values):
                identifier = f"{ability}-{index + first_id:03d}"
                record = {
                    "key": f"test/{identifier}",
                    "task": "test",
                    "id": identifier,
                    "ability": ability,
                    "status": status,
                }
                record |= {"well_formed": index not in ill_formed, "num_tokens": 5, "finish_reason": "stop"}
                lines.append(json.dumps(record) + "\n")
        (directory / "records.jsonl").write_text("".join(lines))
    return directory


def draw(rate: float, seed: int, n: int = NUM_SAMPLES) -> list[str]:
    return ["correct" if right else "incorrect" for right in np.random.default_rng(seed).random(n) < rate]


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    rates = {
        "sft": (0.3, 0.5),
        "full@0": (0.8, 0.5),
        "full@1": (0.9, 0.5),
        "freeze-mid@0": (0.6, 0.5),
        "freeze-mid@1": (0.5, 0.5),
    }
    found = []
    for number, (label, (first, second)) in enumerate(rates.items()):
        statuses = {"vision": draw(first, 2 * number), "reasoning": draw(second, 2 * number + 1)}
        found.append(parse_entry(f"{label}={write_evaluation(tmp_path / label, statuses)}"))
    return found


def test_tables_hold_every_model_ability_metric_and_comparison(entries: list[Entry]) -> None:
    scores, comparison = compare(entries, baseline="sft", reference="full")
    assert len(scores) == len(entries) * 2
    assert list(comparison.columns) == list(COLUMNS)
    pooled = comparison[comparison["seed"] == "pooled"]
    pairs = [("full", "sft"), ("freeze-mid", "sft"), ("freeze-mid", "full")]
    for ability in ("vision", "reasoning"):
        for metric in METRICS:
            rows = pooled[(pooled["ability"] == ability) & (pooled["metric"] == metric)]
            assert list(zip(rows["arm"], rows["against"], strict=True)) == pairs
            assert (rows["n"] == NUM_SAMPLES).all() and (rows["num_seeds"] == 2).all()
            assert ((rows["low"] <= rows["difference"]) & (rows["difference"] <= rows["high"])).all()
    assert len(comparison) == 2 * 2 * 3 * (1 + 2)


def test_the_pooled_difference_is_the_difference_of_mean_accuracies(entries: list[Entry]) -> None:
    scores, comparison = compare(entries, baseline="sft", reference="full")
    means = scores[scores["ability"] == "vision"].groupby("model")["accuracy"].mean()
    rows = comparison[
        (comparison["seed"] == "pooled") & (comparison["ability"] == "vision") & (comparison["metric"] == "accuracy")
    ]
    for _, row in rows.iterrows():
        assert row["difference"] == pytest.approx(means[row["arm"]] - means[row["against"]])


def test_mcnemar_per_seed_counts_what_a_reader_would_count(entries: list[Entry]) -> None:
    _, comparison = compare(entries, baseline="sft", reference="full")
    rows = {
        entry.label: pd.read_json(entry.directory / "records.jsonl", lines=True).set_index("id") for entry in entries
    }
    for seed in (0, 1):
        for arm, against, other in (("full", "sft", "sft"), ("freeze-mid", "full", f"full@{seed}")):
            first, second = rows[f"{arm}@{seed}"], rows[other]
            for ability in ("vision", "reasoning"):
                own = first[first["ability"] == ability]
                right, right_other = own["status"] == "correct", second.loc[own.index, "status"] == "correct"
                gained, lost = int((right & ~right_other).sum()), int((~right & right_other).sum())
                pair = comparison[(comparison["arm"] == arm) & (comparison["against"] == against)]
                pair = pair[(pair["ability"] == ability) & (pair["metric"] == "accuracy")]
                ((_, row),) = pair[pair["seed"] == seed].iterrows()
                assert (row["num_gained"], row["num_lost"], row["n"]) == (gained, lost, NUM_SAMPLES)
                assert row["p"] == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)
                assert row["difference"] == pytest.approx((gained - lost) / NUM_SAMPLES)


def test_p_values_are_corrected_within_their_family_alone(entries: list[Entry]) -> None:
    _, comparison = compare(entries, baseline="sft", reference="full")
    assert comparison["family"].nunique() == 4
    for _, family in comparison.groupby("family"):
        assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))


def test_gain_kept_is_one_for_full_and_missing_where_full_gained_nothing(entries: list[Entry]) -> None:
    _, comparison = compare(entries, baseline="sft", reference="full")
    rows = comparison[
        (comparison["seed"] == "pooled") & (comparison["against"] == "sft") & (comparison["metric"] == "accuracy")
    ]
    vision = rows[rows["ability"] == "vision"].set_index("arm")
    assert (vision.loc["full", ["gain_kept", "gain_kept_low", "gain_kept_high"]] == 1).all()
    expected = vision.loc["freeze-mid", "difference"] / vision.loc["full", "difference"]
    assert vision.loc["freeze-mid", "gain_kept"] == pytest.approx(expected)
    assert rows[rows["ability"] == "reasoning"]["gain_kept"].isna().all()


def test_the_second_metric_keeps_only_what_both_answered_in_form(tmp_path: Path) -> None:
    directories = [
        write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)}, ill_formed=(0, 1, 2)),
        write_evaluation(tmp_path / "b", {"vision": draw(0.8, 1)}, ill_formed=(2, 3)),
    ]
    _, comparison = compare(
        [Entry("a", None, directories[0]), Entry("b", None, directories[1])], baseline="a", reference=None
    )
    assert list(comparison["n"]) == [NUM_SAMPLES, NUM_SAMPLES, NUM_SAMPLES - 4, NUM_SAMPLES - 4]


def test_no_form_in_common_leaves_a_row_without_numbers(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)}, ill_formed=tuple(range(NUM_SAMPLES)))
    second = write_evaluation(tmp_path / "b", {"vision": draw(0.8, 1)})
    _, comparison = compare([Entry("a", None, first), Entry("b", None, second)], baseline="a", reference=None)
    row = comparison[comparison["metric"] == METRICS[1]]
    assert list(row["n"]) == [0]
    assert row[["difference", "p", "p_holm"]].isna().all(axis=None)


def test_unscored_answers_leave_the_pairing_and_are_counted(tmp_path: Path) -> None:
    statuses = draw(0.5, 0)
    unscored = ["unscored"] * 5 + statuses[5:]
    first = write_evaluation(tmp_path / "a", {"vision": statuses})
    second = write_evaluation(tmp_path / "b", {"vision": unscored})
    scores, comparison = compare([Entry("a", None, first), Entry("b", None, second)], baseline="a", reference=None)
    assert list(comparison["n"].unique()) == [NUM_SAMPLES - 5]
    assert (comparison["difference"] == 0).all() and (comparison["p"] == 1).all()
    assert list(scores["n"]) == [NUM_SAMPLES, NUM_SAMPLES - 5]
    assert list(scores["num_unscored"]) == [0, 5]


def test_different_samples_are_refused(tmp_path: Path, entries: list[Entry]) -> None:
    other = write_evaluation(tmp_path / "other", {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}, first_id=7)
    with pytest.raises(ValueError, match="other and sft answered different samples of vision"):
        compare([*entries, Entry("other", None, other)], baseline="sft", reference=None)


def test_a_sample_filed_under_another_ability_is_refused(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)})
    second = write_evaluation(tmp_path / "b", {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)})
    with pytest.raises(ValueError, match="a and b answered different samples of reasoning"):
        compare([Entry("b", None, second), Entry("a", None, first)], baseline="a", reference=None)


@pytest.mark.parametrize(
    ("key", "value"), [("prompt_style", "think"), ("max_new_tokens", 99), ("tasks", {"test": "abd"})]
)
def test_different_settings_are_refused_by_name(tmp_path: Path, entries: list[Entry], key: str, value: object) -> None:
    statuses = {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}
    other = write_evaluation(tmp_path / "other", statuses, settings={key: value})
    with pytest.raises(ValueError, match=f"sft and other were evaluated with different {key}"):
        compare([*entries, Entry("other", None, other)], baseline="sft", reference=None)


def test_an_unfinished_evaluation_is_refused(entries: list[Entry]) -> None:
    path = entries[-1].directory / "run.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"'))
    with pytest.raises(ValueError, match="is running; run its evaluation to the end first"):
        compare(entries, baseline="sft", reference="full")


def test_a_model_named_twice_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="'full@0' is named twice"):
        compare([*entries, Entry("full", 0, entries[1].directory)], baseline="sft", reference="full")


def test_a_model_with_and_without_a_seed_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    statuses = {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}
    other = write_evaluation(tmp_path / "other", statuses)
    with pytest.raises(ValueError, match="'full' stands with and without a seed"):
        compare([*entries, Entry("full", None, other)], baseline="sft", reference="full")


def test_unknown_baseline_and_reference_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="baseline 'stf' is not among the models"):
        compare(entries, baseline="stf", reference="full")
    with pytest.raises(ValueError, match="reference 'fully' is not among the models"):
        compare(entries, baseline="sft", reference="fully")


def test_arms_without_a_common_seed_are_refused(entries: list[Entry]) -> None:
    kept = [entry for entry in entries if entry.label not in ("freeze-mid@0", "full@1")]
    with pytest.raises(ValueError, match="freeze-mid and full share no seed"):
        compare(kept, baseline="sft", reference="full")


@pytest.mark.parametrize("text", ["sft", "=dir", "full@x=dir", "@0=dir"])
def test_a_malformed_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no NAME=DIR or NAME@SEED=DIR"):
        parse_entry(text)


def test_the_command_writes_both_tables_and_the_same_command_leaves_them(tmp_path: Path, entries: list[Entry]) -> None:
    argv = [f"{entry.label}={entry.directory}" for entry in entries]
    argv += ["--baseline", "sft", "--reference", "full", "--output-dir", str(tmp_path / "out")]
    main(argv)
    written = {name: (tmp_path / "out" / name).read_bytes() for name in ("scores.csv", "comparison.csv")}
    stamps = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written}
    main(argv)
    assert stamps == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written}
    main([*argv, "--overwrite"])
    assert written == {name: (tmp_path / "out" / name).read_bytes() for name in written}


def test_records_with_unusual_line_breaks_in_a_reply_are_read(tmp_path: Path) -> None:
    directory = write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)})
    path = directory / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**row, "response": "a\u2028b\x85c"}, ensure_ascii=False) + "\n" for row in rows)
    )
    scores, _ = compare(
        [Entry("a", None, directory), Entry("b", None, write_evaluation(tmp_path / "b", {"vision": draw(0.5, 0)}))],
        baseline="a",
        reference=None,
    )
    assert list(scores["n"]) == [NUM_SAMPLES, NUM_SAMPLES]
