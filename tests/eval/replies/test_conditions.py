"""Black images, descriptions and samples of a real (untrained) pocket checkpoint, through the full command line."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval.replies.answering import answer_batch
from eval.replies.conditions import Query, make_queries
from eval.replies.generation import Generation
from eval.replies.pictures import Picture, PixelLimits, open_picture, pixel_limits
from eval.run import ARGUMENTS, EvaluationArguments, evaluate, main
from eval.tasks import Task
from models.loading import load_processor
from tracking.command import REPOSITORY_ROOT, parse_arguments

CONDITIONS = {"vision": ["given", "black"], "vision-to-reasoning": ["given", "described"], "reasoning": ["given"]}


def write_prompt_set(directory: Path, num_prompts: int = 9) -> Path:
    """A third of the prompts of each ability; those that see have a picture each, of several sizes."""
    (directory / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    prompts = []
    for number in range(num_prompts):
        ability = list(CONDITIONS)[number % 3]
        image = f"images/{number}.png"
        if ability != "reasoning":
            size = (84, 84) if number % 2 else (70, 90)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(directory / image)
        prompts.append(
            Prompt(
                id=f"p{number}",
                ability=ability,
                question=f"What is {number} + red ?",
                answer=str(number),
                answer_kind="number",
                images=() if ability == "reasoning" else (image,),
                meta={"cluster": f"c{number // 2}"} if number < 4 else None,
            )
        )
    write_prompts(directory, "test", prompts)
    return directory


@pytest.fixture
def prompt_set(tmp_path: Path) -> Path:
    return write_prompt_set(tmp_path / "prompts")


@pytest.fixture
def descriptions(tmp_path: Path) -> Path:
    path = tmp_path / "descriptions.jsonl"  # of all but one of the prompts that need one
    path.write_text("".join(json.dumps({"id": f"p{n}", "description": f"There are {n} red ."}) + "\n" for n in (1, 4)))
    return path


def command(model: Path, prompts: Path, descriptions: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        "--model", str(model), "--tasks", f"{prompts}:test", "--output_dir", str(output_dir), "--abilities", "true",
        "--descriptions", str(descriptions), "--dtype", "float32", "--max_new_tokens", "8", "--batch_size", "4", *more,
    ]  # fmt: skip


SAMPLES = ("--num_samples", "3", "--temperature", "1.0", "--top_p", "0.95")


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().split("\n")[:-1]]


@pytest.mark.slow
def test_every_prompt_is_asked_as_its_abilitys_definition_needs_and_what_is_missing_is_counted(
    pocket_checkpoint: Path, prompt_set: Path, descriptions: Path, tmp_path: Path
) -> None:
    main(command(pocket_checkpoint, prompt_set, descriptions, tmp_path / "out", *SAMPLES))
    rows = records(tmp_path / "out")
    asked: dict[str, set[tuple[str, int]]] = {}
    for row in rows:
        asked.setdefault(row["id"], set()).add((row["condition"], row["sample"]))
    for number in range(9):
        wanted = CONDITIONS[list(CONDITIONS)[number % 3]]
        wanted = [name for name in wanted if name != "described" or number in (1, 4)]
        assert asked[f"p{number}"] == {(name, sample) for name in wanted for sample in range(3)}
    assert len({row["key"] for row in rows}) == len(rows)
    attempt = json.loads((tmp_path / "out" / "run.json").read_text())["attempts"][0]
    assert attempt["num_undescribed"] == 1 and attempt["tasks"] == {"test": f"{prompt_set}:test"}
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("ability")
    assert scores["num_ability"].to_dict() == {"vision": 3, "vision-to-reasoning": 2, "reasoning": 3}
    assert scores["num_samples"].eq(3).all()
    by_id = {row["id"]: row for row in rows}
    assert [by_id[f"p{number}"]["cluster"] for number in (0, 1, 2, 8)] == ["c0", "c0", "c1", None]


@pytest.mark.slow
def test_conditions_change_what_they_say_and_samples_differ(
    pocket_checkpoint: Path, prompt_set: Path, descriptions: Path, tmp_path: Path
) -> None:
    main(command(pocket_checkpoint, prompt_set, descriptions, tmp_path / "out", *SAMPLES))
    by_key = {(row["id"], row["condition"], row["sample"]): row for row in records(tmp_path / "out")}
    given, black = by_key["p0", "given", 0], by_key["p0", "black", 0]
    assert given["prompt_sha256"] == black["prompt_sha256"] and given["response"] != black["response"]
    assert by_key["p1", "given", 0]["prompt_sha256"] != by_key["p1", "described", 0]["prompt_sha256"]
    assert len({by_key["p2", "given", sample]["response"] for sample in range(3)}) > 1


def test_descriptions_that_a_definition_needs_are_asked_for_before_anything_is_written(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(pocket_checkpoint), "--tasks", f"{prompt_set}:test", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"asked with a description .* there is none; give --descriptions FILE"):
        main([*flags, "--abilities", "true"])
    assert not (tmp_path / "out").exists()


def test_a_prompt_asked_black_answers_as_one_whose_picture_is_black(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    def run(name: str, conditions: list[str]) -> dict[tuple[str, str], str]:
        arguments = EvaluationArguments(
            model=str(pocket_checkpoint), tasks=[f"{prompt_set}:test"], output_dir=str(tmp_path / name),
            conditions=conditions, max_new_tokens=8, dtype="float32",
        )  # fmt: skip
        return {(row["id"], row["condition"]): row["response"] for row in records(evaluate(arguments))}

    asked = run("asked", ["given", "black"])
    for path in (prompt_set / "images").iterdir():
        with Image.open(path) as image:
            black = Image.new("RGB", image.size)
        black.save(path)
    painted = run("painted", ["given"])
    seeing = [name for name, condition in asked if condition == "black"]
    assert len(seeing) == 6
    assert all(asked[name, "black"] == painted[name, "given"] for name in seeing)
    assert any(asked[name, "black"] != asked[name, "given"] for name in seeing)


@pytest.mark.slow
def test_a_command_killed_at_any_time_continues_to_the_same_files(
    pocket_checkpoint: Path, prompt_set: Path, descriptions: Path, tmp_path: Path
) -> None:
    asked = command(pocket_checkpoint, prompt_set, descriptions, tmp_path / "whole", *SAMPLES)
    main(asked)
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in ("records.jsonl", "scores.csv")}
    lines = whole["records.jsonl"].splitlines(keepends=True)
    for num_kept in (1, 10, len(lines) - 1):
        out = tmp_path / f"kept{num_kept}"
        shutil.copytree(tmp_path / "whole", out)
        for name in whole:
            (out / name).unlink()
        (out / "records-0.jsonl").write_bytes(b"".join(lines[-num_kept:]) + lines[0][:20])
        state = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps({**state, "status": "running"}))
        main(command(pocket_checkpoint, prompt_set, descriptions, out, *SAMPLES))
        assert {name: (out / name).read_bytes() for name in whole} == whole
        assert not list(out.glob("records-*.jsonl"))
    with pytest.raises(ValueError, match="sampling"):
        main([*command(pocket_checkpoint, prompt_set, descriptions, tmp_path / "whole"), *SAMPLES, "--seed", "1"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]])
def test_a_process_that_is_killed_and_two_that_share_the_work_end_alike(
    pocket_checkpoint: Path, descriptions: Path, warm_python: Path, tmp_path: Path, launcher: list[str]
) -> None:
    prompts = write_prompt_set(tmp_path / "prompts", num_prompts=60)
    main(command(pocket_checkpoint, prompts, descriptions, tmp_path / "whole"))
    out = tmp_path / "out"
    flags = command(pocket_checkpoint, prompts, descriptions, out)
    words = [warm_python, *launcher, "-m", "eval.run", *flags]
    if not launcher:
        first = subprocess.Popen(words, cwd=REPOSITORY_ROOT)
        while first.poll() is None and not (out / "records-0.jsonl").exists():
            time.sleep(0.01)
        while first.poll() is None and not (out / "records-0.jsonl").stat().st_size:
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert not (out / "scores.csv").exists()
    subprocess.run(words, cwd=REPOSITORY_ROOT, check=True)
    for name in ("records.jsonl", "scores.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Narrow:
    """An engine on which more than `room` replies do not fit; says with how many it answered."""

    dtype = "float32"

    def __init__(self, room: int) -> None:
        self.room = room

    def answer(self, requests: Any) -> list[Generation]:
        if len(requests) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return [Generation(f"{len(requests)} together", 1, "stop") for _ in requests]


@pytest.mark.slow
def test_where_memory_runs_out_a_batch_is_cut_in_the_same_places_whatever_was_done_before(prompt_set: Path) -> None:
    prompts = [
        Prompt(id=str(number), ability="reasoning", question="What ?", answer="1", answer_kind="number")
        for number in range(16)
    ]
    task = Task(name="t", prompts=prompts, directory=prompt_set, fingerprint="")
    queries = make_queries(task, lambda prompt: ("given",), {}, 1)
    texts = {query.key: query.prompt.question for query in queries}
    batches = [queries[:8], queries[8:]]

    def run(chosen: list[list[Query]]) -> dict[str, str]:
        engine = Narrow(room=3)
        parts = [part for batch in chosen for part in answer_batch(engine, batch, texts, 8, 0)]
        return {record["key"]: record["response"] for part in parts for record in part}

    whole = run(batches)
    assert len(whole) == 16 and set(whole.values()) == {"2 together"}
    for batch in batches:
        assert run([batch]) == {key: whole[key] for key in (query.key for query in batch)}


def test_a_picture_is_brought_within_the_limits_and_left_alone_where_it_fits(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    limits = pixel_limits(load_processor(pocket_checkpoint), min_pixels=None, max_pixels=None)
    assert limits == PixelLimits(min_pixels=28 * 28, max_pixels=16 * 28 * 28, patch_size=14)
    rng = np.random.default_rng(0)
    fits = Image.fromarray(rng.integers(0, 256, (84, 56, 3), dtype=np.uint8))
    fits.save(tmp_path / "fits.png")
    assert open_picture(Picture(tmp_path / "fits.png"), limits).tobytes() == fits.tobytes()
    fits.resize((900, 600)).save(tmp_path / "large.png")
    for black in (False, True):
        shown = open_picture(Picture(tmp_path / "large.png", black=black), limits)
        assert shown.width % 28 == shown.height % 28 == 0 and shown.width * shown.height <= limits.max_pixels
        assert (not any(shown.tobytes())) == black
    fits.resize((28, 900)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"strip\.png: 28 x 900 pixels cannot be brought to .* raise max_pixels"):
        open_picture(Picture(tmp_path / "strip.png"), limits)
    narrow = pixel_limits(load_processor(pocket_checkpoint), min_pixels=None, max_pixels=4 * 28 * 28)
    assert narrow is not None
    shown = open_picture(Picture(tmp_path / "large.png"), narrow)
    assert shown.width * shown.height <= 4 * 28 * 28


def test_fewer_pixels_reach_the_model_and_stand_in_the_settings(
    pocket_checkpoint: Path, prompt_set: Path, tmp_path: Path
) -> None:
    found = {}
    for max_pixels in (None, 4 * 28 * 28):
        arguments = EvaluationArguments(
            model=str(pocket_checkpoint), tasks=[f"{prompt_set}:test"], output_dir=str(tmp_path / str(max_pixels)),
            max_new_tokens=6, dtype="float32", max_pixels=max_pixels,
        )  # fmt: skip
        directory = evaluate(arguments)
        settings = json.loads((directory / "run.json").read_text())["settings"]
        assert settings["pixels"]["max_pixels"] == (max_pixels or 16 * 28 * 28)
        assert settings["generation"]["repetition_penalty"] == 1.0
        found[max_pixels] = {row["id"]: row["response"] for row in records(directory) if row["ability"] == "vision"}
    assert found[None] != found[4 * 28 * 28]


def test_a_configuration_file_may_hold_everything_the_command_takes(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("abilities: true\nnum_samples: 4\ntemperature: 0.6\ntop_p: 0.95\ndescriptions: d.jsonl\n")
    given = ["--config", str(path), "--model", "m", "--tasks", "t:test", "--output_dir", "o"]
    arguments, sampling, describing, judging = parse_arguments(given, *ARGUMENTS, description=None)
    assert (arguments.abilities, sampling.num_samples, sampling.top_p) == (True, 4, 0.95)
    assert (describing.descriptions, judging.judge_url) == ("d.jsonl", None)
