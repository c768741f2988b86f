"""Evaluation of a real (untrained) pocket checkpoint: batches, continuing, prompts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval.compare.command import main as compare
from eval.replies.generation import make_batches, render_prompt
from eval.run import EvaluationArguments, evaluate, main
from eval.tasks import open_task
from merge.recipes.recipe import read_recipe, recipe_from_dict
from merge.splice import main as splice
from models.loading import load_processor
from models.pocket import PocketShape, write_pocket_checkpoint
from train.running.data import DataArguments, build_dataset

TEXT = {"ability": "reasoning", "answer_kind": "number"}
PICTURE = {"ability": "vision", "answer_kind": "text"}
BRIDGE = {"ability": "vision-to-reasoning", "answer_kind": "number"}
PROMPTS = (
    Prompt(id="t0", question="What is 2 + 3 ?", answer="5", **TEXT),
    Prompt(id="t1", question="There are 2 red and 4 blue objects . What is red + blue ?", answer="6", **TEXT),
    Prompt(id="t2", question="What is one ?", answer="1", **TEXT),
    Prompt(id="i0", question="What colour are the objects there ?", answer="red", images=("images/a.png",), **PICTURE),
    Prompt(id="i1", question="What colour is it ?", answer="red", images=("images/b.png",), **PICTURE),
    Prompt(id="i2", question="Are they equal ?", answer="no", images=("images/a.png", "images/b.png"), **PICTURE),
)


def write_prompt_set(directory: Path) -> Path:
    (directory / "images").mkdir(parents=True)
    for name, colour, size in (("a", (214, 40, 40), (84, 84)), ("b", (40, 80, 210), (56, 84))):
        image = Image.new("RGB", size, (236, 236, 236))
        image.paste(colour, (10, 10, 30, 40))
        image.save(directory / "images" / f"{name}.png")
    write_prompts(directory, "test", PROMPTS)
    return directory


@pytest.fixture
def prompt_set(tmp_path: Path) -> Path:
    return write_prompt_set(tmp_path / "prompts")


def arguments(model: Path, prompts: Path, output_dir: Path, **changes: Any) -> EvaluationArguments:
    values: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 4, "dtype": "float32", **changes}
    return EvaluationArguments(model=str(model), tasks=[f"{prompts}:test"], output_dir=str(output_dir), **values)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().split("\n")[:-1]]


@pytest.mark.slow
def test_answers_in_a_batch_are_those_given_one_by_one(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    batched = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "batched"))
    single = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "single", batch_size=1))
    replies = {row["key"]: (row["response"], row["num_tokens"], row["finish_reason"]) for row in records(single)}
    assert len(replies) == len(PROMPTS)
    assert {
        row["key"]: (row["response"], row["num_tokens"], row["finish_reason"]) for row in records(batched)
    } == replies


def test_scores_have_a_row_an_ability_that_agrees_with_the_records(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    directory = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "out"))
    scores = pd.read_csv(directory / "scores.csv").set_index("ability")
    rows = pd.DataFrame(records(directory))
    assert sorted(scores.index) == ["reasoning", "vision"]
    for ability, group in rows.groupby("ability"):
        assert scores.loc[ability, "n"] == 3
        assert scores.loc[ability, "accuracy"] == pytest.approx((group["status"] == "correct").mean())
        assert scores.loc[ability, "mean_tokens"] == pytest.approx(group["num_tokens"].mean(), rel=1e-5)
        assert scores.loc[ability, "at_limit_frac"] == pytest.approx(
            (group["finish_reason"] == "length").mean(), rel=1e-5
        )


@pytest.mark.parametrize("num_kept", [0, 3, 6])
@pytest.mark.cases_slow
def test_a_killed_evaluation_continues_to_the_same_tables(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path, num_kept: int
) -> None:
    asked = arguments(pocket_checkpoint, prompt_set, tmp_path / "out")
    directory = evaluate(asked)
    whole = {name: (directory / name).read_bytes() for name in ("records.jsonl", "scores.csv")}
    lines = whole["records.jsonl"].splitlines(keepends=True)
    torn = lines[num_kept][:30] if num_kept < len(lines) else b""
    (directory / "records.jsonl").write_bytes(b"".join(lines[:num_kept]) + torn)
    (directory / "scores.csv").unlink()
    state = json.loads((directory / "run.json").read_text())
    state["status"] = "running"
    (directory / "run.json").write_text(json.dumps(state))
    evaluate(asked)
    assert {name: (directory / name).read_bytes() for name in whole} == whole
    state = json.loads((directory / "run.json").read_text())
    assert (state["status"], len(state["attempts"])) == ("finished", 2)


def test_replies_of_an_earlier_evaluation_are_reused(pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path) -> None:
    given = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "given"))
    whole = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "whole", abilities=True))
    marked = [{**record, "response": record["response"] + " (reused)"} for record in records(given)]
    (given / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in marked))
    asked = arguments(pocket_checkpoint, prompt_set, tmp_path / "out", abilities=True, reuse=[str(given)])
    directory = evaluate(asked)
    expected = {record["key"]: record for record in records(whole)} | {record["key"]: record for record in marked}
    assert records(directory) == list(expected.values())
    assert (directory / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    state = json.loads((directory / "run.json").read_text())
    assert state["settings"] == json.loads((whole / "run.json").read_text())["settings"]
    assert state["attempts"][0]["num_reused"] == len(PROMPTS) < len(expected)
    (given / "run.json").unlink()
    assert evaluate(asked) == directory  # finished: the earlier results are not needed any more


def test_replies_of_an_evaluation_with_other_settings_are_refused(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    given = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "given"))
    out = tmp_path / "out"
    longer = arguments(pocket_checkpoint, prompt_set, out, abilities=True, reuse=[str(given)], max_new_tokens=9)
    with pytest.raises(ValueError, match=r"given was made with other settings: max_new_tokens 8 there and 9 here"):
        evaluate(longer)
    write_pocket_checkpoint(tmp_path / "other", shape=PocketShape(num_layers=3), seed=1)
    with pytest.raises(ValueError, match="model_fingerprint"):
        evaluate(arguments(tmp_path / "other", prompt_set, out, abilities=True, reuse=[str(given)]))
    write_prompts(prompt_set, "test", PROMPTS[:4])
    changed = arguments(pocket_checkpoint, prompt_set, out, abilities=True, reuse=[str(given)])
    with pytest.raises(ValueError, match="its task 'test' has other prompts"):
        evaluate(changed)
    state = json.loads((given / "run.json").read_text())
    (given / "run.json").write_text(json.dumps({**state, "status": "running"}))
    with pytest.raises(ValueError, match="given is not finished"):
        evaluate(changed)
    assert not out.exists()


def test_a_finished_evaluation_is_left_alone(pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path) -> None:
    asked = arguments(pocket_checkpoint, prompt_set, tmp_path / "out")
    directory = evaluate(asked)
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir() if path.suffix}
    evaluate(asked)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir() if path.suffix} == before
    with pytest.raises(ValueError, match="max_new_tokens = 8, now it is 9"):
        evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "out", max_new_tokens=9))


def test_batches_hold_every_prompt_once_and_one_number_of_images() -> None:
    texts = [prompt.question for prompt in PROMPTS]
    for batch_size in (1, 2, 5):
        batches = make_batches(PROMPTS, texts, batch_size)
        assert sorted(index for batch in batches for index in batch) == list(range(len(PROMPTS)))
        assert all(len(batch) <= batch_size for batch in batches)
        assert all(len({len(PROMPTS[index].images) for index in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("style", ["plain", "think", "boxed"])
@pytest.mark.parametrize("system_prompt", [None, "Answer in one word ."])
def test_training_and_evaluation_put_the_same_words_to_the_model(
    pocket_checkpoint: Path, prompt_set: Path, style: str, system_prompt: str | None
) -> None:
    from trl.data_utils import prepare_multimodal_messages

    processor = load_processor(pocket_checkpoint)
    prompts = read_prompts(prompt_set, "test")
    data = DataArguments(prompts=str(prompt_set), split="test", prompt_style=style, system_prompt=system_prompt)
    for prompt, row in zip(
        prompts, build_dataset(prompts, range(len(prompts)), data, with_response=False), strict=True
    ):
        messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        trained_on = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert trained_on == render_prompt(processor, prompt, style=style, system_prompt=system_prompt)
        assert len(row["images"]) == len(prompt.images)


def test_two_tasks_whose_splits_share_a_name_are_both_scored_or_refused(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    folders = [write_prompt_set(tmp_path / name) for name in ("first", "second")]
    asked = EvaluationArguments(
        model=str(pocket_checkpoint), tasks=[f"{folder}:test" for folder in folders], output_dir=str(tmp_path / "out"),
        max_new_tokens=4, dtype="float32",
    )  # fmt: skip
    try:
        directory = evaluate(asked)
    except ValueError as error:
        assert "test" in str(error)
    else:
        assert len(records(directory)) == 2 * len(PROMPTS)


def break_file(directory: Path, how: str) -> None:
    path = directory / "test.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if how == "empty":
        path.write_text("")
    elif how == "image":
        (directory / "images" / "b.png").unlink()
    elif how == "json":
        path.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    elif how == "duplicate":
        path.write_text("".join([*lines, lines[2]]))
    elif how == "key":
        path.write_text(lines[0].replace('"answer"', '"anwser"'))
    elif how == "answer":
        path.write_text(lines[0].replace('"5"', '""'))
    elif how == "list":
        path.write_text("[1, 2]\n")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", r"test\.jsonl is empty"),
        ("image", r"2 images are missing, the first is .*b\.png"),
        ("json", r"test\.jsonl:2: not a JSON object"),
        ("duplicate", r"test\.jsonl:7: id 't2' appears twice"),
        ("key", r"test\.jsonl:1: unexpected \['anwser'\]"),
        ("answer", r"test\.jsonl:1: prompt 't0': answer is ''"),
        ("list", r"test\.jsonl:1: unexpected list"),
        ("gone", r"test\.jsonl does not exist; .* holds no prompt set"),
    ],
)
def test_a_bad_prompt_set_is_refused_before_anything_is_written(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path, how: str, message: str
) -> None:
    break_file(prompt_set, how)
    with pytest.raises(ValueError, match=message):
        evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_questions_with_unusual_line_breaks_survive_writing_and_reading(tmp_path: Path) -> None:
    prompt = Prompt(id="a", ability="vision", question="one\u2028two\x85three\nfour", answer="5", answer_kind="number")
    write_prompts(tmp_path, "test", [prompt])
    assert read_prompts(tmp_path, "test") == [prompt]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--prompt_style": "thnk"}, "'thnk' is unknown.*did you mean 'think'"),
        ({"--batch_size": "0"}, "batch_size is 0"),
        ({"--max_new_tokens": "0"}, "max_new_tokens is 0"),
        ({"--bacth_size": "3"}, "did you mean '--batch_size'"),
        ({"--model": "no/such/folder"}, "checkpoint no/such/folder does not exist"),
        ({"--conditions": "black"}, "measured against given; name it too"),
        ({"--descriptions": "no/such/file"}, "have no effect"),
        ({"--num_samples": "4"}, "num_samples is 4 at temperature 0"),
        ({"--top_p": "0.9"}, "top_p is 0.9 at temperature 0"),
        ({"--repetition_window": "8"}, "repetition_window is 8"),
        ({"--max_pixels": "500"}, "max_pixels 500"),
        ({"--engine": "vlm"}, "'vlm' is unknown.*did you mean 'vllm'"),
        ({"--engine": "vllm", "--attn_implementation": "eager"}, "'eager' has no effect with engine vllm"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    flags = {
        "--model": str(pocket_checkpoint),
        "--tasks": f"{prompt_set}:test",
        "--output_dir": str(tmp_path / "out"),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        main([word for flag in flags.items() for word in flag])
    assert not (tmp_path / "out").exists()


def test_a_task_without_a_split_or_named_twice_is_refused(pocket_checkpoint: Path, prompt_set: Path) -> None:
    with pytest.raises(ValueError, match="is unknown; expected FOLDER:SPLIT"):
        open_task("test")
    with pytest.raises(ValueError, match="is named twice"):
        EvaluationArguments(model=str(pocket_checkpoint), tasks=[f"{prompt_set}:test"] * 2, output_dir="out")


def test_a_limit_takes_the_first_prompts_of_each_task(prompt_set: Path) -> None:
    whole = open_task(f"{prompt_set}:test")
    assert whole.limited(None) is whole
    first = whole.limited(2)
    assert first.prompts == whole.prompts[:2] and first.fingerprint == whole.fingerprint
    assert first.facts["limit"] == 2 and "limit" not in whole.facts


@pytest.fixture
def recipe(pocket_checkpoint: Path, tmp_path: Path) -> Path:
    """Late layers and embeddings of another pocket model, mid ones halfway to it, and its chat template."""
    other = tmp_path / "rl"
    write_pocket_checkpoint(other, shape=PocketShape(), seed=1)
    template = other / "chat_template.jinja"
    template.write_text("{{- '<|im_start|>system\nAnswer .<|im_end|>\n' -}}" + template.read_text())
    path = tmp_path / "recipe.yaml"
    values = {
        "donors": {"in": str(pocket_checkpoint), "rl": str(other)},
        "blocks": {"early": "in", "mid": {"start": "in", "end": "rl", "alpha": 0.5}, "late": "rl"},
        "rest": {"vision": "in", "projector": "in", "embed": "rl", "norm": "in", "head": "rl"},
        "files": "rl",
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_is_answered_as_its_written_splice(recipe: Path, prompt_set: Path, tmp_path: Path) -> None:
    splice(["--recipe", str(recipe), "--output_dir", str(tmp_path / "splice")])
    written = evaluate(arguments(tmp_path / "splice" / "checkpoint", prompt_set, tmp_path / "written"))
    live = evaluate(arguments(recipe, prompt_set, tmp_path / "live"))
    for name in ("records.jsonl", "scores.csv"):
        assert (live / name).read_bytes() == (written / name).read_bytes()
    assert len({record["response"] for record in records(live)}) > 1
    noted = json.loads((live / "run.json").read_text())["attempts"][0]["recipe"]
    assert recipe_from_dict(noted) == read_recipe(recipe)
    compare([f"live={live}", f"written={written}", "--baseline", "live", "--output-dir", str(tmp_path / "comparison")])
    assert (tmp_path / "comparison" / "comparison.csv").is_file()
    other = evaluate(arguments(recipe, prompt_set, tmp_path / "other", dtype="bfloat16"))
    with pytest.raises(ValueError, match="evaluated with different dtype"):
        compare([f"a={live}", f"b={other}", "--baseline", "a", "--output-dir", str(tmp_path / "unlike")])


@pytest.mark.parametrize(
    ("before", "after"), [("late: rl", "late: in"), ("alpha: 0.5", "alpha: 0.4"), ("files: rl", "files: in")]
)
@pytest.mark.cases_slow
def test_a_recipe_that_has_changed_is_not_continued(
    recipe: Path, prompt_set: Path, tmp_path: Path, before: str, after: str
) -> None:
    evaluate(arguments(recipe, prompt_set, tmp_path / "out"))
    assert before in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(before, after))
    with pytest.raises(ValueError, match=r"was made with (model_fingerprint|chat_template_sha256)"):
        evaluate(arguments(recipe, prompt_set, tmp_path / "out"))


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    recipe: Path, prompt_set: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("early: in", "llm:0: in"))
    with pytest.raises(ValueError, match=r"no owner to decoder layers 1"):
        evaluate(arguments(recipe, prompt_set, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"gone\.yaml.*no such file"):
        evaluate(arguments(tmp_path / "gone.yaml", prompt_set, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
