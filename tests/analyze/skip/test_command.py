"""The skip probe from command line to tables: controls, continuing, processes, families, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analyze.skip.command import SkipArguments, main, probe
from analyze.skip.reference import without_layers
from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval.run import EvaluationArguments, evaluate
from models.loading import load_model
from models.pocket import PocketShape, write_pocket_checkpoint
from tests.eval.test_run import write_prompt_set

TABLES = ("records.jsonl", "rates.csv", "controls.csv")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompt_set(tmp_path_factory.mktemp("prompts") / "set")


def arguments(model: Path, prompts: Path, output_dir: Path, **changes: Any) -> SkipArguments:
    values: dict[str, Any] = {
        "tasks": [f"{prompts}:test"], "configurations": ["layers", "late.mlp"], "max_new_tokens": 8, "batch_size": 7,
        "dtype": "float32", **changes,
    }  # fmt: skip
    return SkipArguments(model=str(model), output_dir=str(output_dir), **values)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().split("\n")[:-1]]


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def whole(pocket_checkpoint: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed probe of six prompts, some of them with pictures."""
    return probe(arguments(pocket_checkpoint, prompts, tmp_path_factory.mktemp("whole") / "out"))


def test_every_problem_is_answered_under_every_configuration_once(whole: Path) -> None:
    rows = pd.DataFrame(records(whole))
    names = ["plain", "none", *(f"llm:{layer}" for layer in range(6)), "late.mlp"]
    assert rows["key"].tolist() == [f"test/{number}/{name}" for number in rows["id"].unique() for name in names]
    assert rows["id"].nunique() == 6
    rates = pd.read_csv(whole / "rates.csv")
    assert rates.groupby("ability")["configuration"].agg(list).tolist() == [names[1:]] * 2
    assert rates["n"].tolist() == [3] * 16
    assert (whole / "figures" / "drop.png").stat().st_size > 10_000


def test_with_nothing_left_out_the_model_is_the_one_that_eval_run_scores(
    whole: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    (control,) = pd.read_csv(whole / "controls.csv").to_dict("records")
    assert (control["n"], control["num_equal_replies"], control["holds"]) == (6, 6, True)
    scored = evaluate(
        EvaluationArguments(
            model=str(pocket_checkpoint), tasks=[f"{prompts}:test"], output_dir=str(tmp_path / "eval"),
            max_new_tokens=8, batch_size=3, dtype="float32",
        )
    )  # fmt: skip
    replies = {row["id"]: (row["response"], row["status"]) for row in records(scored)}
    for name in ("plain", "none"):
        own = {row["id"]: (row["response"], row["status"]) for row in records(whole) if row["configuration"] == name}
        assert own == replies


def test_a_skipped_layer_gives_the_replies_of_a_checkpoint_without_it(
    whole: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    shorter = tmp_path / "shorter"
    without_layers(load_model(pocket_checkpoint), [3]).save_pretrained(shorter)
    for path in pocket_checkpoint.iterdir():
        if not (shorter / path.name).exists():
            (shorter / path.name).write_bytes(path.read_bytes())
    scored = evaluate(
        EvaluationArguments(
            model=str(shorter), tasks=[f"{prompts}:test"], output_dir=str(tmp_path / "eval"), max_new_tokens=8,
            dtype="float32",
        )
    )  # fmt: skip
    replies = {row["id"]: row["response"] for row in records(scored)}
    assert {row["id"]: row["response"] for row in records(whole) if row["configuration"] == "llm:3"} == replies
    assert {row["id"]: row["response"] for row in records(whole) if row["configuration"] == "none"} != replies


@pytest.mark.parametrize("num_kept", [10, 54])
@pytest.mark.cases_slow
def test_a_killed_probe_continues_to_the_same_tables(
    whole: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path, num_kept: int
) -> None:
    """What was left are two processes' own records, one of them torn."""
    directory = tmp_path / "out"
    directory.mkdir()
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    torn = lines[num_kept][:40] if num_kept < len(lines) else b""
    (directory / "records-0.jsonl").write_bytes(b"".join(lines[: num_kept // 2]))
    (directory / "records-1.jsonl").write_bytes(b"".join(lines[num_kept // 2 : num_kept]) + torn)
    state = json.loads((whole / "run.json").read_text())
    state["status"] = "running"
    (directory / "run.json").write_text(json.dumps(state))
    probe(arguments(pocket_checkpoint, prompts, directory))
    assert contents(directory) == contents(whole)
    assert sorted(path.name for path in directory.glob("*.jsonl")) == ["records.jsonl"]


@pytest.mark.slow
def test_replies_do_not_depend_on_what_stands_beside_them(
    whole: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    other = probe(arguments(pocket_checkpoint, prompts, tmp_path / "out", batch_size=48))
    assert contents(other) == contents(whole)


def test_a_finished_probe_is_left_alone_and_other_settings_are_refused(
    whole: Path, pocket_checkpoint: Path, prompts: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.suffix}
    probe(arguments(pocket_checkpoint, prompts, whole))
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.suffix} == before
    with pytest.raises(ValueError, match="repetition_window = 128, now it is 32"):
        probe(arguments(pocket_checkpoint, prompts, whole, repetition_window=32))


@pytest.mark.slow
def test_a_text_only_model_answers_published_problems_in_lower_precision(
    qwen2_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = [{"question": f"What is {a} + 2 ?", "answer": f"{a}+2={a + 2}\n#### {a + 2}"} for a in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    formulas = [{"problem": "Halve $x$", "answer": "\\frac{x}{2}", "subject": "Algebra", "level": 1}]
    (tmp_path / "formulas.jsonl").write_text(json.dumps(formulas[0]) + "\n")
    main(
        [
            "--model", str(qwen2_checkpoint), "--tasks", f"gsm8k:{tmp_path / 'sums.jsonl'}",
            f"math500:{tmp_path / 'formulas.jsonl'}", "--configurations", "blocks", "--limit", "3",
            "--prompt_style", "boxed", "--max_new_tokens", "24", "--repetition_window", "16", "--dtype", "bfloat16",
            "--output_dir", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    rates = pd.read_csv(tmp_path / "out" / "rates.csv")
    assert rates.groupby("task")["n"].agg(list).to_dict() == {"gsm8k": [3] * 4, "math500": [1] * 4}
    ended = [
        row["finish_reason"] == "repetition" for row in records(tmp_path / "out") if row["configuration"] != "plain"
    ]
    assert rates["repetition_frac"].mean() > 0 and any(ended)
    said = capsys.readouterr().out
    assert "repeated themselves and were ended" in said and "control passed: gsm8k" in said


def test_a_problem_with_an_unreadable_image_is_listed_and_the_rest_goes_on(
    pocket_checkpoint: Path, tmp_path: Path, whole: Path
) -> None:
    prompts = write_prompt_set(tmp_path / "set")
    seeing = [prompt for prompt in read_prompts(prompts, "test") if prompt.images]
    (prompts / seeing[0].images[0]).write_bytes(b"no picture")
    sharing = {prompt.id for prompt in seeing if seeing[0].images[0] in prompt.images}
    output_dir = probe(arguments(pocket_checkpoint, prompts, tmp_path / "out", configurations=["none"]))
    skipped = pd.read_csv(output_dir / "skipped.csv", dtype=str)
    assert set(skipped["id"]) == sharing and skipped["reason"].str.contains("cannot be read").all()
    left = [(row["id"], row["response"]) for row in records(output_dir) if row["configuration"] == "none"]
    assert left == [
        (row["id"], row["response"])
        for row in records(whole)
        if row["configuration"] == "none" and row["id"] not in sharing
    ]


@pytest.mark.slow
def test_a_recipe_is_probed_as_the_splice_it_describes(
    pocket_checkpoint: Path, prompts: Path, tmp_path: Path, whole: Path
) -> None:
    other = tmp_path / "rl"
    write_pocket_checkpoint(other, shape=PocketShape(), seed=1)
    recipe = {
        "donors": {"in": str(pocket_checkpoint), "rl": str(other)},
        "blocks": {"early": "in", "mid": "in", "late": "rl"},
        "rest": dict.fromkeys(("vision", "projector", "embed", "norm", "head"), "in"),
        "files": "in",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    asked = {"configurations": ["late"], "abilities": ["reasoning"]}
    spliced = probe(arguments(tmp_path / "recipe.yaml", prompts, tmp_path / "spliced", **asked))
    own = probe(arguments(pocket_checkpoint, prompts, tmp_path / "own", **asked))
    replies = [
        [row["response"] for row in records(directory) if row["configuration"] == name]
        for directory in (spliced, own)
        for name in ("none", "late")
    ]
    assert replies[0] != replies[2] and replies[1] == replies[3]  # the layers that differ are left out


def test_a_control_that_does_not_hold_fails_the_run_and_stands_in_the_output(
    whole: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    """As where a model's own replies had been made otherwise."""
    directory = tmp_path / "out"
    directory.mkdir()
    rows = records(whole)
    rows[0]["response"] = "blue"
    (directory / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = json.loads((whole / "run.json").read_text())
    state["status"] = "running"
    (directory / "run.json").write_text(json.dumps(state))
    with pytest.raises(RuntimeError, match="with nothing left out only 5 of 6 replies are the plain model's"):
        probe(arguments(pocket_checkpoint, prompts, directory))
    assert pd.read_csv(directory / "controls.csv")["holds"].tolist() == [False]
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configurations": ["layrs"]}, "'layrs' is unknown"),
        ({"configurations": ["vision"]}, "which has no skip connection"),
        ({"dtype": "float23"}, "dtype 'float23' is unknown"),
        ({"abilities": ["reasonin"]}, "did you mean 'reasoning'"),
        ({"abilities": ["vision-to-reasoning"]}, "has no prompts of vision-to-reasoning"),
        ({"repetition_window": 8}, "repetition_window is 8"),
        ({"limit": 0}, "limit is 0"),
        ({"tasks": ["gsm8k:gone.jsonl"]}, r"gone\.jsonl does not exist"),
        ({"model": "no/such/folder"}, "no/such/folder does not exist"),
        ({"cuts": [4, 2]}, "do not divide 6 layers"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    pocket_checkpoint: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        probe(arguments(**{"model": pocket_checkpoint, "prompts": prompts, "output_dir": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()


def test_pictures_for_a_text_only_model_and_tasks_of_one_name_are_refused(
    qwen2_checkpoint: Path, pocket_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="qwen2 is a text-only model"):
        probe(arguments(qwen2_checkpoint, prompts, tmp_path / "out"))
    second = tmp_path / "second"
    second.mkdir()
    texts: list[Prompt] = [prompt for prompt in read_prompts(prompts, "test") if not prompt.images]
    write_prompts(second, "test", texts)
    with pytest.raises(ValueError, match="two tasks have the name 'test'"):
        probe(arguments(pocket_checkpoint, prompts, tmp_path / "out", tasks=[f"{prompts}:test", f"{second}:test"]))
    assert not (tmp_path / "out").exists()
