"""Comparisons of evaluation directories: tables, tests per seed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from eval.compare.command import COLUMNS, compare, main
from eval.replies.outcomes import BLACK, DESCRIBED, GIVEN, record_key
from eval.statistics.intervals import clustered_mean, holm
from eval.statistics.pairing import ABILITY, ACCURACY, WELL_FORMED, Entry, parse_entry
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


def tables(entries: list[Entry], *, baseline: str, reference: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the scores and the differences of a comparison."""
    found = compare(entries, baseline=baseline, reference=reference)
    return found.scores, found.differences


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
    scores, comparison = tables(entries, baseline="sft", reference="full")
    assert len(scores) == len(entries) * 2
    assert list(comparison.columns) == list(COLUMNS)
    pooled = comparison[comparison["seed"] == "pooled"]
    pairs = [("full", "sft"), ("freeze-mid", "sft"), ("freeze-mid", "full")]
    for ability in ("vision", "reasoning"):
        for metric in (ACCURACY, WELL_FORMED):
            rows = pooled[(pooled["ability"] == ability) & (pooled["metric"] == metric)]
            assert list(zip(rows["arm"], rows["against"], strict=True)) == pairs
            assert (rows["n"] == NUM_SAMPLES).all() and (rows["num_seeds"] == 2).all()
            assert ((rows["low"] <= rows["difference"]) & (rows["difference"] <= rows["high"])).all()
    assert len(comparison) == 2 * 2 * 3 * (1 + 2)


def test_the_pooled_difference_is_the_difference_of_mean_accuracies(entries: list[Entry]) -> None:
    scores, comparison = tables(entries, baseline="sft", reference="full")
    means = scores[scores["ability"] == "vision"].groupby("model")["accuracy"].mean()
    rows = comparison[
        (comparison["seed"] == "pooled") & (comparison["ability"] == "vision") & (comparison["metric"] == "accuracy")
    ]
    for _, row in rows.iterrows():
        assert row["difference"] == pytest.approx(means[row["arm"]] - means[row["against"]])


def test_rows_per_seed_count_what_a_reader_would_count(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft", reference="full")
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
                exact = scipy.stats.binomtest(gained, gained + lost).pvalue  # McNemar's test, below in its mid-p form
                assert row["p"] == pytest.approx(exact - scipy.stats.binom.pmf(gained, gained + lost, 0.5), abs=0.05)
                assert (row["p"] < 0.05) == (not row["low"] <= 0 <= row["high"])
                assert row["scope"] == "checkpoints"
                assert row["difference"] == pytest.approx((gained - lost) / NUM_SAMPLES)
                assert row["low"] <= row["difference"] <= row["high"]
                both_right, both_wrong = int((right & right_other).sum()), int((~right & ~right_other).sum())
                assert (row["num_both_right"], row["num_both_wrong"]) == (both_right, both_wrong)


def test_p_values_are_corrected_within_their_family_alone(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft", reference="full")
    assert comparison["family"].nunique() == 8  # two metrics, pooled or per seed, two models to compare with
    for _, family in comparison.groupby("family"):
        assert family["against"].nunique() == family["metric"].nunique() == 1
        assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))


def test_gain_kept_is_one_for_full_and_missing_where_full_gained_nothing(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft", reference="full")
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
    _, comparison = tables([Entry("a", None, directories[0]), Entry("b", None, directories[1])], baseline="a")
    assert list(comparison["n"]) == [NUM_SAMPLES, NUM_SAMPLES, NUM_SAMPLES - 4, NUM_SAMPLES - 4]


def test_no_form_in_common_leaves_a_row_without_numbers(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)}, ill_formed=tuple(range(NUM_SAMPLES)))
    second = write_evaluation(tmp_path / "b", {"vision": draw(0.8, 1)})
    _, comparison = tables([Entry("a", None, first), Entry("b", None, second)], baseline="a")
    row = comparison[comparison["metric"] == WELL_FORMED]
    assert list(row["n"]) == [0]
    assert row[["difference", "p", "p_holm"]].isna().all(axis=None)


def test_unscored_answers_leave_the_pairing_and_are_counted(tmp_path: Path) -> None:
    statuses = draw(0.5, 0)
    unscored = ["unscored"] * 5 + statuses[5:]
    first = write_evaluation(tmp_path / "a", {"vision": statuses})
    second = write_evaluation(tmp_path / "b", {"vision": unscored})
    scores, comparison = tables([Entry("a", None, first), Entry("b", None, second)], baseline="a")
    assert list(comparison["n"].unique()) == [NUM_SAMPLES - 5]
    assert (comparison["difference"] == 0).all() and (comparison["p"] == 1).all()
    assert list(scores["n"]) == [NUM_SAMPLES, NUM_SAMPLES - 5]
    assert list(scores["num_unscored"]) == [0, 5]


def test_different_samples_are_refused(tmp_path: Path, entries: list[Entry]) -> None:
    other = write_evaluation(tmp_path / "other", {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}, first_id=7)
    with pytest.raises(ValueError, match="other and sft answered different samples of vision"):
        tables([*entries, Entry("other", None, other)], baseline="sft")


def test_a_sample_filed_under_another_ability_is_refused(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", {"vision": draw(0.5, 0)})
    second = write_evaluation(tmp_path / "b", {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)})
    with pytest.raises(ValueError, match="a and b answered different samples of reasoning"):
        tables([Entry("b", None, second), Entry("a", None, first)], baseline="a")


@pytest.mark.parametrize(
    ("key", "value"), [("prompt_style", "think"), ("max_new_tokens", 99), ("tasks", {"test": "abd"})]
)
def test_different_settings_are_refused_by_name(tmp_path: Path, entries: list[Entry], key: str, value: object) -> None:
    statuses = {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}
    other = write_evaluation(tmp_path / "other", statuses, settings={key: value})
    with pytest.raises(ValueError, match=f"sft and other were evaluated with different {key}"):
        tables([*entries, Entry("other", None, other)], baseline="sft")


def test_an_unfinished_evaluation_is_refused(entries: list[Entry]) -> None:
    path = entries[-1].directory / "run.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"'))
    with pytest.raises(ValueError, match="is running; run its evaluation to the end first"):
        tables(entries, baseline="sft", reference="full")


def test_a_model_named_twice_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="'full@0' is named twice"):
        tables([*entries, Entry("full", 0, entries[1].directory)], baseline="sft", reference="full")


def test_a_model_with_and_without_a_seed_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    statuses = {"vision": draw(0.5, 0), "reasoning": draw(0.5, 1)}
    other = write_evaluation(tmp_path / "other", statuses)
    with pytest.raises(ValueError, match="'full' is given with and without a seed"):
        tables([*entries, Entry("full", None, other)], baseline="sft", reference="full")


def test_unknown_baseline_and_reference_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="baseline 'stf' is not among the models"):
        tables(entries, baseline="stf", reference="full")
    with pytest.raises(ValueError, match="reference 'fully' is not among the models"):
        tables(entries, baseline="sft", reference="fully")


def test_a_model_alone_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="only full is given; expected two models or more"):
        tables(entries[1:3], baseline="full")


def test_arms_without_a_common_seed_are_compared_over_all_of_theirs(entries: list[Entry]) -> None:
    kept = [entry for entry in entries if entry.label != "freeze-mid@0"]
    kept[-1] = replace(kept[-1], seed=7)
    _, comparison = tables(kept, baseline="sft", reference="full")
    own = comparison[(comparison["arm"] == "freeze-mid") & (comparison["against"] == "full")]
    assert set(own["seed"]) == {"pooled"}
    assert (own["num_seeds"] == 1).all() and (own["num_seeds_against"] == 2).all()
    assert (own["scope"] == "training").all() and (own["seed_degrees"] == 1).all()


def test_a_row_says_whether_it_is_about_training_or_about_checkpoints(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft", reference="full")
    scopes = comparison.groupby(comparison["seed"] == "pooled")["scope"].unique()
    assert list(scopes[True]) == ["training"] and list(scopes[False]) == ["checkpoints"]
    _, single = tables([entry for entry in entries if entry.seed != 1], baseline="sft", reference="full")
    assert set(single["scope"]) == {"checkpoints"}


def test_corrected_intervals_agree_with_corrected_p_values(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft", reference="full")
    excludes = (comparison["low_holm"] > 0) | (comparison["high_holm"] < 0)
    assert (excludes == (comparison["p_holm"] < 0.05)).all() and excludes.any() and not excludes.all()
    assert (comparison["low_holm"] <= comparison["low"] + 1e-12).all()


@pytest.mark.parametrize("text", ["", "=dir", "full=", "full@x=dir", "@0=dir", "runs/full@x"])
def test_a_malformed_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not DIR, NAME=DIR or NAME@SEED=DIR"):
        parse_entry(text)


def test_the_command_writes_both_tables_and_the_same_command_leaves_them(tmp_path: Path, entries: list[Entry]) -> None:
    argv = [f"{entry.label}={entry.directory}" for entry in entries]
    argv += ["--baseline", "sft", "--reference", "full", "--output-dir", str(tmp_path / "out")]
    main(argv)
    names = ("scores.csv", "comparison.csv", "transitions.csv", "comparison.html")
    written = {name: (tmp_path / "out" / name).read_bytes() for name in names}
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
    scores, _ = tables(
        [Entry("a", None, directory), Entry("b", None, write_evaluation(tmp_path / "b", {"vision": draw(0.5, 0)}))],
        baseline="a",
    )
    assert list(scores["n"]) == [NUM_SAMPLES, NUM_SAMPLES]


def write_replies(directory: Path, replies: list[dict[str, object]]) -> Path:
    """Writes a finished evaluation of replies under any conditions, with any number of samples."""
    with open_run(directory, command="eval.run", settings={**SETTINGS, "model": str(directory)}):
        lines = []
        for reply in replies:
            place = {"condition": GIVEN, "sample": 0} | reply
            key = record_key("test", str(reply["id"]), str(place["condition"]), int(str(place["sample"])))
            filled = {"key": key, "task": "test", "well_formed": True, "num_tokens": 5, "finish_reason": "stop"}
            lines.append(json.dumps(filled | place) + "\n")
        (directory / "records.jsonl").write_text("".join(lines))
    return directory


def pair(tmp_path: Path, first: list[dict[str, object]], second: list[dict[str, object]]) -> list[Entry]:
    """Returns model b and its baseline a."""
    return [Entry(name, None, write_replies(tmp_path / name, own)) for name, own in (("a", second), ("b", first))]


def status(right: bool) -> str:
    return "correct" if right else "incorrect"


def asked(ability: str, rights: np.ndarray, other: np.ndarray, condition: str) -> list[dict[str, object]]:
    """Returns replies to prompts as given and under a second condition."""
    ids = [f"{ability}-{number:03d}" for number in range(len(rights))]
    return [
        {"id": name, "ability": ability, "condition": place, "status": status(right)}
        for place, values in ((GIVEN, rights), (condition, other))
        for name, right in zip(ids, values, strict=True)
    ]


def test_the_papers_abilities_are_compared_by_their_definitions(tmp_path: Path) -> None:
    given, black, described = (np.random.default_rng(seed).random((2, NUM_SAMPLES)) < 0.6 for seed in (1, 2, 3))
    models = [
        asked("vision", given[model], black[model], BLACK)
        + asked("vision-to-reasoning", given[model], described[model], DESCRIBED)
        + [{"id": f"r-{n}", "ability": "reasoning", "status": status(given[model][n])} for n in range(20)]
        for model in (0, 1)
    ]
    _, comparison = tables(pair(tmp_path, *models), baseline="a")
    pooled = comparison[(comparison["seed"] == "pooled") & (comparison["metric"] == ABILITY)].set_index("ability")
    single = comparison[(comparison["seed"] == "") & (comparison["metric"] == ABILITY)].set_index("ability")
    expected = {
        "vision": given & ~black,
        "vision-to-reasoning": given & described,
        "reasoning": given[:, :20],
    }
    assert list(pooled.index) == list(expected)
    for ability, has in expected.items():
        assert pooled.loc[ability, "mean"] == pytest.approx(has[0].mean())
        assert pooled.loc[ability, "difference"] == pytest.approx(has[0].mean() - has[1].mean())
        row = single.loc[ability]
        assert row["num_gained"] == (has[0] & ~has[1]).sum() and row["num_lost"] == (has[1] & ~has[0]).sum()


def test_without_conditions_there_is_no_second_table_that_repeats_the_first(entries: list[Entry]) -> None:
    _, comparison = tables(entries, baseline="sft")
    assert set(comparison["metric"]) == {ACCURACY, WELL_FORMED}


def test_several_samples_count_as_their_mean_and_are_not_put_to_mcnemar(tmp_path: Path) -> None:
    num_right = np.random.default_rng(4).integers(0, 5, (2, NUM_SAMPLES))
    models = [
        [
            {"id": f"{n:03d}", "ability": "reasoning", "sample": sample, "status": status(sample < own[n])}
            for n in range(NUM_SAMPLES)
            for sample in range(4)
        ]
        for own in num_right
    ]
    _, comparison = tables(pair(tmp_path, *models), baseline="a")
    difference = (num_right[0] - num_right[1]) / 4
    for _, row in comparison.iterrows():
        assert row["n"] == NUM_SAMPLES and row["test"] == "paired t, prompts"
        assert row["difference"] == pytest.approx(difference.mean())
        assert row["standard_error"] == pytest.approx(scipy.stats.sem(difference), rel=0.05)
    single = comparison[comparison["seed"] == ""].iloc[0]
    assert single["num_gained"] == ((num_right[0] > 2) & (num_right[1] < 2)).sum()
    assert single["num_both_right"] == ((num_right[0] > 2) & (num_right[1] > 2)).sum()


def test_prompts_that_belong_together_are_no_independent_ones(tmp_path: Path) -> None:
    rights = np.repeat(np.random.default_rng(5).random((2, 30)) < 0.5, 4, axis=1)
    models = [
        [
            {"id": f"{n:03d}", "ability": "vision", "cluster": f"image-{n // 4}", "status": status(right)}
            for n, right in enumerate(own)
        ]
        for own in rights
    ]
    _, comparison = tables(pair(tmp_path, *models), baseline="a")
    difference = rights[0].astype(float) - rights[1]
    expected = clustered_mean(difference, np.arange(120) // 4).standard_error
    assert expected > 1.8 * scipy.stats.sem(difference)
    assert (comparison["test"] == "paired t, clusters of prompts").all() and (comparison["num_clusters"] == 30).all()
    assert comparison["standard_error"].to_numpy() == pytest.approx(np.full(4, expected), rel=0.04)


def test_a_cluster_of_one_prompt_changes_nothing(tmp_path: Path) -> None:
    rights = np.random.default_rng(6).random((2, 50)) < 0.5
    replies = [
        [{"id": f"{n:02d}", "ability": "vision", "status": status(right)} for n, right in enumerate(own)]
        for own in rights
    ]
    named = [[{**reply, "cluster": reply["id"]} for reply in own] for own in replies]
    (tmp_path / "named").mkdir()
    _, plain = tables(pair(tmp_path, *replies), baseline="a")
    _, alone = tables(pair(tmp_path / "named", *named), baseline="a")
    pd.testing.assert_frame_equal(plain, alone)


def test_tasks_with_one_ability_are_compared_apart(tmp_path: Path) -> None:
    models = []
    for seed, shift in ((1, 0.0), (2, 0.5)):
        own = []
        for task, rate in (("easy", 0.4), ("hard", 0.1)):
            for n, right in enumerate(np.random.default_rng(seed).random(40) < rate + shift):
                own.append({"id": str(n), "task": task, "key": f"{task}/{n}", "ability": "reasoning"})
                own[-1]["status"] = status(right)
        models.append(own)
    _, comparison = tables(pair(tmp_path, *models), baseline="a")
    assert comparison.groupby("task", sort=False)["n"].first().to_dict() == {"easy": 40, "hard": 40}
    assert comparison["family"].nunique() == 4


def test_a_folder_alone_is_named_after_itself(tmp_path: Path, entries: list[Entry]) -> None:
    assert parse_entry("runs/eval/sft/") == Entry("sft", None, Path("runs/eval/sft/"))
    folders = [str(tmp_path / name) for name in ("sft", "full@0", "freeze-mid@0")]
    main([*folders, "--baseline", folders[0], "--output-dir", str(tmp_path / "out")])
    assert set(pd.read_csv(tmp_path / "out" / "comparison.csv")["arm"]) == {"full", "freeze-mid"}
