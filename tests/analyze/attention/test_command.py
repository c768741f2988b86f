"""`analyze.attention` as a command, on untrained pocket models: tables, controls, references, resuming, statistics."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import t, ttest_rel

from analyze.attention.command import AttentionArguments, main, measure_attention
from analyze.attention.records import MEASURES, SEGMENTS, collect
from analyze.attention.tables import Side, compare, pairs_of
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval.statistics.intervals import holm
from eval.statistics.pooled import Term, contrast
from models.pocket import PocketShape, write_pocket_checkpoint
from tracking.command import run_command
from tracking.records import read_records

REPLY = "<think>red and blue</think><answer>2</answer>"


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket checkpoint of another seed."""
    directory = tmp_path_factory.mktemp("other") / "checkpoint"
    write_pocket_checkpoint(directory, shape=PocketShape(), seed=1)
    return directory


def write_prompt_set(directory: Path) -> Path:
    """Four prompts with pictures, one of them with two, and two without."""
    (directory / "images").mkdir(parents=True)
    for number in range(5):
        image = Image.new("RGB", (84 + 28 * (number % 2), 84), (236, 236, 236))
        image.paste((214, 40, 40), (10, 10 * number, 40, 10 * number + 30))
        image.save(directory / "images" / f"{number}.png")
    prompts = [
        Prompt(
            id=f"p{number}", ability="vision" if pictures else "reasoning", question=f"What is red + {number} ?",
            answer="2", answer_kind="number", images=tuple(f"images/{p}.png" for p in pictures), response=REPLY,
        )
        for number, pictures in enumerate([(0,), (1, 2), (3,), (4,), (), ()])
    ]  # fmt: skip
    write_prompts(directory, "test", prompts)
    return directory


@pytest.fixture(scope="session")
def prompt_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompt_set(tmp_path_factory.mktemp("attention_prompts") / "data")


def arguments(models: dict[str, Path], data: Path, output_dir: Path, **changes: Any) -> AttentionArguments:
    values: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 3, "top_tokens": 2, **changes}
    named = [f"{name}={path}" for name, path in models.items()]
    return AttentionArguments(models=named, tasks=[f"{data}:test"], output_dir=str(output_dir), **values)


@pytest.fixture(scope="session")
def measured(
    pocket_checkpoint: Path, other_checkpoint: Path, prompt_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model and two seeds of another, the second of which is the first model again; on stored replies and own."""
    models = {"base": pocket_checkpoint, "rl@0": other_checkpoint, "rl@1": pocket_checkpoint}
    output_dir = tmp_path_factory.mktemp("measured") / "out"
    return measure_attention(arguments(models, prompt_set, output_dir, reference="response"))


def test_masses_of_all_segments_sum_to_one_in_the_table(measured: Path) -> None:
    table = pd.read_csv(measured / "attention.csv")
    table = table[(table["head"] == "mean") & (table["ability"] == "vision") & table["measure"].isin(SEGMENTS)]
    sums = table.groupby(["model", "seed", "mode", "part", "layer"], dropna=False)["mean"].sum()
    assert len(sums) > 3 * 2 * 6
    np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_a_model_against_itself_has_shifted_by_exactly_nothing(measured: Path) -> None:
    shift = pd.read_csv(measured / "shift.csv")
    own = shift[shift["seed"] == "1"]
    assert len(own) and not own[["difference", "low", "high"]].any(axis=None) and (own["p_holm"] == 1).all()
    other = shift[(shift["model"] == "rl") & (shift["seed"] == "0") & (shift["mode"] == "teacher-forced")]
    assert (other["difference"] != 0).mean() > 0.9
    controls = pd.read_csv(measured / "controls.csv")
    assert controls["passed"].all()
    assert set(controls["control"]) == {"sums", "repeat", "logits", "output", "tokens"}


def test_tables_give_the_means_and_paired_differences_of_the_records(measured: Path) -> None:
    jobs = read_records(measured / "records.jsonl")
    records = [record for job in jobs for record in job["records"] if "control" not in record]
    groups = collect(records)["teacher-forced", "test", "vision"]
    base, rl = (next(g for label, g in groups.items() if str(label) == name) for name in ("base", "rl@0"))
    column = MEASURES.index("vision")
    first, second = (group.layers["reply"][:, 2, column] for group in (base, rl))

    table = pd.read_csv(measured / "attention.csv", dtype={"seed": str})
    row = one(
        table,
        model="base",
        mode="teacher-forced",
        ability="vision",
        part="reply",
        layer=2,
        head="mean",
        measure="vision",
    )
    low, high = t.interval(0.95, 3, first.mean(), first.std(ddof=1) / 2)
    np.testing.assert_allclose(row[["n", "mean", "low", "high"]].astype(float), [4, first.mean(), low, high], rtol=1e-4)

    shift = pd.read_csv(measured / "shift.csv", dtype={"seed": str})
    row = one(
        shift, model="rl", seed="0", mode="teacher-forced", ability="vision", part="reply", layer=2, measure="vision"
    )
    test = ttest_rel(second, first)
    interval = test.confidence_interval()
    expected = [(second - first).mean(), interval.low, interval.high, test.pvalue]
    np.testing.assert_allclose(row[["difference", "low", "high", "p"]].astype(float), expected, rtol=1e-4)


def one(table: pd.DataFrame, **where: Any) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def test_pooled_rows_cover_seeds_and_prompts_and_p_values_are_holms() -> None:
    rng = np.random.default_rng(0)
    own, start = rng.normal(0.2, 1, (3, 25, 4)) + rng.normal(0, 0.2, (3, 1, 1)), rng.normal(size=(1, 25, 4))
    rows = compare(Side(("0", "1", "2"), own), Side(("",), start))
    pooled = [row for row in rows if row["seed"] == "pooled"]
    terms = [
        Term(coefficient=sign, values=values, trained=trained)
        for sign, values, trained in ((1, own, True), (-1, start, False))
    ]
    expected = contrast(terms)
    for column, row in enumerate(pooled):
        interval = expected.one(column)
        assert (row["num_seeds"], row["n"]) == (3, 25)
        ends = [interval.low, interval.estimate, interval.high]
        np.testing.assert_allclose([row["low"], row["difference"], row["high"]], ends)
        assert row["p"] == pytest.approx(expected.p()[column])
    for seed in ("0", "1", "2", "pooled"):
        own_rows = [row for row in rows if row["seed"] == seed]
        np.testing.assert_allclose([row["p_holm"] for row in own_rows], holm(np.array([row["p"] for row in own_rows])))


def test_every_model_is_compared_with_each_baseline_and_two_baselines_once() -> None:
    assert pairs_of(["base", "sft", "rl", "rl"], ["base", "sft"]) == [("sft", "base"), ("rl", "base"), ("rl", "sft")]


def test_without_an_image_the_mass_on_it_is_absent_and_the_rest_is_there(
    measured: Path, qwen2_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(measured / "attention.csv")
    text = table[table["ability"] == "reasoning"]
    assert "question" in set(text["measure"]) and not text["measure"].str.startswith("vision").any()
    pooled = table[(table["ability"] == "all") & (table["part"] == "reply") & (table["mode"] == "teacher-forced")]
    assert set(pooled[pooled["measure"] == "vision"]["n"]) == {4} and set(pooled[pooled["measure"] == "self"]["n"]) == {
        6
    }

    write_prompts(
        tmp_path, "test", [Prompt(id="a", ability="reasoning", question="1 + 1 ?", answer="2", answer_kind="number")]
    )
    output_dir = measure_attention(arguments({"text": qwen2_checkpoint}, tmp_path, tmp_path / "out"))
    table = pd.read_csv(output_dir / "attention.csv")
    assert set(table["mode"]) == {"teacher-forced", "own"}
    assert pd.read_csv(output_dir / "shift.csv").empty  # nothing to compare it with
    assert not table["measure"].str.startswith("vision").any()
    with pytest.raises(ValueError, match="text-only"):
        measure_attention(arguments({"text": qwen2_checkpoint}, prompt_set, tmp_path / "with_images"))


@pytest.mark.slow
def test_a_run_that_was_cut_short_continues_to_the_same_tables(
    measured: Path, pocket_checkpoint: Path, other_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    models = {"base": pocket_checkpoint, "rl@0": other_checkpoint, "rl@1": pocket_checkpoint}
    cut = Path(shutil.copytree(measured, tmp_path / "cut"))
    state = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**state, "status": "failed"}))
    lines = (cut / "records.jsonl").read_text().splitlines(keepends=True)
    (cut / "records.jsonl").unlink()
    (cut / "records-0.jsonl").write_text("".join(lines[:12]) + lines[12][:50])  # killed while writing
    for name in ("attention.csv", "shift.csv"):
        (cut / name).unlink()
    measure_attention(arguments(models, prompt_set, cut, reference="response"))
    assert (cut / "records.jsonl").read_text().splitlines(keepends=True) == lines
    for name in ("attention.csv", "shift.csv", "blocks.csv"):
        assert (cut / name).read_text() == (measured / name).read_text()
    before = (cut / "shift.csv").stat().st_mtime_ns
    measure_attention(arguments(models, prompt_set, cut, reference="response"))
    assert (cut / "shift.csv").stat().st_mtime_ns == before  # a finished run is left alone


@pytest.mark.slow
def test_a_reference_model_lends_its_greedy_answers_and_a_file_its_replies(
    pocket_checkpoint: Path, other_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    models = {"base": pocket_checkpoint, "rl": other_checkpoint}
    lent = measure_attention(arguments(models, prompt_set, tmp_path / "lent", reference="rl", modes=["teacher-forced"]))
    answers = read_records(lent / "answers" / "records.jsonl")
    assert {record["model"] for job in answers for record in job["records"]} == {"rl"}
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(json.dumps(record) + "\n" for job in answers for record in job["records"]))
    given = measure_attention(
        arguments(
            {"base": pocket_checkpoint}, prompt_set, tmp_path / "given", modes=["teacher-forced"],
            reference=str(replies),
        )
    )  # fmt: skip
    first, own = (pd.read_csv(directory / "attention.csv") for directory in (lent, given))
    pd.testing.assert_frame_equal(first[first["model"] == "base"].reset_index(drop=True), own)
    assert not (given / "answers").exists()
    short = tmp_path / "short.jsonl"
    short.write_text('{"id": "p0", "response": "red"}\n')
    with pytest.raises(ValueError, match=r"no reply to the prompt test/p1"):
        measure_attention(arguments(models, prompt_set, tmp_path / "none", reference=str(short)))
    short.write_text('{"id": "p0", "response": "red"}\n{"id": "p0", "response": "blue"}\n')
    with pytest.raises(ValueError, match=r"short\.jsonl:2: a second reply to p0; expected one for each prompt"):
        measure_attention(arguments(models, prompt_set, tmp_path / "none", reference=str(short)))
    short.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"short\.jsonl: not readable as text"):
        measure_attention(arguments(models, prompt_set, tmp_path / "none", reference=str(short)))
    with pytest.raises(ValueError, match=r"did you mean 'base'"):
        measure_attention(arguments(models, prompt_set, tmp_path / "none", reference="bas"))


def test_an_unreadable_image_and_an_empty_reply_are_listed_and_the_rest_goes_on(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    data = write_prompt_set(tmp_path / "data")
    (data / "images" / "3.png").write_bytes((data / "images" / "3.png").read_bytes()[:60])
    replies = tmp_path / "replies.jsonl"
    lines = [json.dumps({"id": f"p{number}", "response": "" if number == 0 else REPLY}) for number in range(6)]
    replies.write_text("\n".join(lines) + "\n")
    output_dir = measure_attention(
        arguments({"base": pocket_checkpoint}, data, tmp_path / "out", reference=str(replies), modes=["teacher-forced"])
    )
    skipped = pd.read_csv(output_dir / "skipped.csv")
    assert list(skipped["id"]) == ["p0", "p2"]
    assert "empty" in skipped["reason"][0] and "3.png" in skipped["reason"][1]
    counts = pd.read_csv(output_dir / "replies.csv").set_index("ability")
    assert (counts.loc["vision", "n"], counts.loc["vision", "num_skipped"]) == (2, 1)


@pytest.mark.slow
def test_models_that_read_other_tokens_fail_the_run_after_its_tables(
    pocket_checkpoint: Path,
    other_checkpoint: Path,
    prompt_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = Path(shutil.copytree(other_checkpoint, tmp_path / "changed"))
    template = changed / "chat_template.jinja"
    assert "assistant" in template.read_text()
    template.write_text(template.read_text().replace("assistant", "north"))
    argv = [
        "--models", f"base={pocket_checkpoint}", f"rl={changed}", "--tasks", f"{prompt_set}:test", "--reference",
        "response", "--modes", "teacher-forced", "--limit", "2", "--output-dir", str(tmp_path / "out"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    assert stop.value.code == 1
    assert "control 'tokens' failed for rl" in capsys.readouterr().err
    controls = pd.read_csv(tmp_path / "out" / "controls.csv")
    assert list(controls[~controls["passed"]]["value"]) == [2]
    assert (tmp_path / "out" / "shift.csv").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["owm"]}, "did you mean 'own'"),
        ({"baseline": ["sft"]}, "baseline 'sft' is not among"),
        ({"models": ["base"]}, "is not NAME=MODEL"),
        ({"models": ["a={path}", "a={path}"]}, "named twice"),
        ({"models": ["a={path}", "a@0={path}"]}, "with and without a seed"),
        ({"models": ["a/b={path}"]}, "no / in NAME"),
        ({"modes": []}, "no mode is named"),
        ({"modes": ["own"], "reference": "base"}, "--reference has no effect without the mode teacher-forced"),
        ({"dtype": "float23"}, "dtype 'float23' is unknown"),
    ],
)
def test_mistakes_are_named(
    changes: dict[str, Any], message: str, pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"models": ["base={path}"], "tasks": [f"{prompt_set}:test"], **changes}
    values["models"] = [text.format(path=pocket_checkpoint) for text in values["models"]]
    with pytest.raises(ValueError, match=message):
        measure_attention(AttentionArguments(output_dir=str(tmp_path / "out"), **values))
    assert not (tmp_path / "out").exists()
