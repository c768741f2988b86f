"""An evaluation with models behind endpoints: a judge and a describing model that fail, and the consequences."""

import json
import re
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval import run
from eval.compare import command as compare
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.records import read_records

NUM_OPEN = 12


@pytest.fixture
def open_questions(tmp_path: Path) -> Path:
    """Prompts whose gold no rule can compare a reply with, and one that a rule judges."""
    facts = {"ability": "reasoning"}
    open_ones = [
        Prompt(id=f"open{number}", question=f"What is 1 + {number} ?", answer="∴ !", answer_kind="text", **facts)
        for number in range(NUM_OPEN)
    ]
    ruled = Prompt(id="sum", question="What is 1 + 1 ?", answer="2", answer_kind="number", **facts)
    write_prompts(tmp_path, "test", [*open_ones, ruled])
    return tmp_path


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """Prompts with a picture each, to be asked described."""
    (tmp_path / "images").mkdir()
    prompts = []
    for number in range(6):
        Image.new("RGB", (56, 56), (40 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        prompts.append(
            Prompt(
                id=f"p{number}", ability="vision-to-reasoning", question="How many ?", answer="1",
                answer_kind="number", images=(f"images/{number}.png",),
            )
        )  # fmt: skip
    write_prompts(tmp_path, "test", prompts)
    return tmp_path


def command(model: Path, prompts: Path, output_dir: Path, *words: str) -> list[str]:
    return ["--model", str(model), "--tasks", f"{prompts}:test", "--output-dir", str(output_dir),
            "--max-new-tokens", "4", *words]  # fmt: skip


def judged_by(server: Any, **changes: str) -> list[str]:
    flags = {
        "--judge-url": server.url, "--judge-model": "judge", "--judge-attempts": "1", "--judge-timeout-s": "5",
        **changes,
    }  # fmt: skip
    return [word for flag in flags.items() for word in flag]


def described_by(server: Any) -> list[str]:
    return ["--conditions", "given", "described", "--describe-url", server.url, "--describe-model", "eyes",
            "--describe-attempts", "1", "--describe-timeout-s", "5"]  # fmt: skip


def outcomes(output_dir: Path) -> Counter[str]:
    records = read_records(output_dir / "records.jsonl")
    assert [record["status"] for record in records if record["id"] == "sum"] == ["incorrect"], "a rule stands"
    return Counter(record["status"] for record in records if record["id"] != "sum")


@pytest.mark.parametrize(
    ("server", "decided"),
    [({"reply": "correct"}, "correct"), ({"reply": "Well, it may be."}, "unscored"), ({"later": "400"}, "unscored"),
     ({"finish_reason": "length"}, "unscored")],
    ids=["answers", "vague", "refuses", "cut"],
)  # fmt: skip
@pytest.mark.cases_slow
def test_what_the_judge_makes_of_a_reply_is_final(
    server: dict[str, str],
    decided: str,
    chat_server: Any,
    open_questions: Path,
    pocket_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat_server.faults = ["none"]
    for name, value in server.items():
        setattr(chat_server, name, value)
    words = command(pocket_checkpoint, open_questions, tmp_path / "out", *judged_by(chat_server))
    run.main(words)
    assert outcomes(tmp_path / "out") == {decided: NUM_OPEN}
    num_asked = len(chat_server.asked)
    said = capsys.readouterr().out
    assert (f"{NUM_OPEN} of {NUM_OPEN} judge questions got no verdict: " in said) == (decided == "unscored")
    run.main(words)
    assert len(chat_server.asked) == num_asked, "nothing is asked again"


@pytest.mark.parametrize("fault", ["503", "stall", "garbage"])
@pytest.mark.cases_slow
def test_what_the_judge_failed_to_answer_is_counted_and_asked_by_the_same_command(
    fault: str, chat_server: Any, open_questions: Path, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run.main(command(pocket_checkpoint, open_questions, whole, *judged_by(chat_server)))
    num_questions = len(chat_server.asked) - 1  # equal replies to equal questions aside, each once; and the trial
    assert num_questions == NUM_OPEN
    chat_server.faults, chat_server.later = ["none"] * 6, fault
    timeout = {"--judge-timeout-s": "2" if fault == "stall" else "5"}
    words = command(pocket_checkpoint, open_questions, tmp_path / "out", *judged_by(chat_server, **timeout))
    with pytest.raises(RuntimeError, match=rf"7 of {NUM_OPEN} judge questions had no answer: .*the same command asks"):
        run.main(words)
    assert outcomes(tmp_path / "out") == {"correct": 5, "unscored": 7}
    assert pd.read_csv(tmp_path / "out" / "scores.csv")["num_unscored"].tolist() == [7]
    chat_server.later = None
    before = len(chat_server.asked)
    run.main(words)
    assert len(chat_server.asked) - before == 7 + 1
    for name in ("records.jsonl", "scores.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert state["status"] == "finished"
    assert [sum(attempt["judge"]["unanswered"].values()) for attempt in state["attempts"]] == [7, 0]
    assert state["attempts"][-1]["judge_settings"]["repetition_penalty"] == 1


def test_the_exit_status_tells_of_unanswered_questions(
    chat_server: Any, open_questions: Path, pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(pocket_checkpoint, open_questions, tmp_path / "out", *judged_by(chat_server))
    chat_server.faults, chat_server.later = ["none"] * 6, "503"
    with pytest.raises(SystemExit) as ended:
        run_command(partial(run.main, words))
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: 7 of {NUM_OPEN} judge questions had no answer: status 503; the same command asks again, "
        "for these alone; with --judge-unanswered keep it leaves these answers unscored and finishes"
    )
    chat_server.later = None
    run_command(partial(run.main, words))
    assert outcomes(tmp_path / "out") == {"correct": NUM_OPEN}


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "failing"])
@pytest.mark.cases_slow
def test_without_its_judge_a_run_finishes_where_it_is_told_so_and_a_comparison_says_what_is_missing(
    gone: bool,
    chat_server: Any,
    open_questions: Path,
    pocket_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command(pocket_checkpoint, open_questions, tmp_path / "out", *judged_by(chat_server))
    chat_server.faults, chat_server.later = ["none"] * 6, "503"
    with pytest.raises(RuntimeError, match=f"7 of {NUM_OPEN} judge questions had no answer"):
        run.main(words)
    num_asked = len(chat_server.asked)
    if gone:
        with pytest.raises(ValueError, match=r"does not answer for .*, or do without it: --judge-unanswered keep$"):
            run.main(words)
        assert len(chat_server.asked) == num_asked + 1
    else:
        chat_server.faults = ["none"] * 3  # the trial, and two answers
    capsys.readouterr()
    run.main([*words, "--judge-unanswered", "keep"])
    num_lost = 7 if gone else 5
    said = capsys.readouterr().out
    assert f"{num_lost} of {NUM_OPEN} judge questions had no answer: " in said
    assert said.count("these answers stay unscored") == 1
    assert outcomes(tmp_path / "out") == {"correct": NUM_OPEN - num_lost, "unscored": num_lost}
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert state["status"] == "finished"
    assert sum(state["attempts"][-1]["judge"]["unanswered"].values()) == num_lost

    chat_server.later = None
    num_asked = len(chat_server.asked)
    run.main(words)
    assert len(chat_server.asked) == num_asked, "it is finished"
    run.main(command(pocket_checkpoint, open_questions, tmp_path / "whole", *judged_by(chat_server)))
    compare.main([f"a={tmp_path / 'whole'}", f"b={tmp_path / 'out'}", "--baseline", "a",
                  "--output-dir", str(tmp_path / "compared")])  # fmt: skip
    doubt = f"{num_lost} of {NUM_OPEN} judge questions about b had no answer"
    assert f"open to doubt: {doubt}" in capsys.readouterr().out
    assert doubt in (tmp_path / "compared" / "comparison.html").read_text()


@pytest.mark.parametrize("fault", ["404", "503", "garbage", "nobody"])
@pytest.mark.parametrize("role", ["judge", "describe"])
def test_an_endpoint_that_does_not_answer_is_told_before_anything_is_written(
    role: str, fault: str, chat_server: Any, pictured: Path, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    chat_server.always = fault if fault != "nobody" else None
    if fault == "nobody":
        chat_server.url = "http://127.0.0.1:9/v1"
    words = judged_by(chat_server) if role == "judge" else described_by(chat_server)
    with pytest.raises(ValueError, match=f"{role}_url: the endpoint 127.0.0.1:.* does not answer for model"):
        run.main(command(pocket_checkpoint, pictured, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()
    assert len(chat_server.asked) == (fault != "nobody")


def test_a_failing_describer_ends_the_command_before_the_model_is_loaded_and_each_image_is_asked_about_once_a_run(
    chat_server: Any, pictured: Path, pocket_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(pocket_checkpoint, pictured, tmp_path / "out", *described_by(chat_server))
    chat_server.reply = "a red square"
    chat_server.faults = ["none", "none", "503", "503", "503"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    with monkeypatch.context() as patched:
        patched.setattr("eval.replies.subject.Subject.load", refuse)
        with pytest.raises(RuntimeError, match=r"3 of 6 requests for a description had no answer: status 503"):
            run.main(words)
    assert len(chat_server.asked) == 1 + 6
    run.main(words)
    assert len(chat_server.asked) == 7 + 1 + 3
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert Counter(record["condition"] for record in records) == {"given": 6, "described": 6}


def test_images_that_the_describer_refuses_are_counted_by_reason_and_asked_about_once(
    chat_server: Any, pictured: Path, pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_server.reply = "a red square"
    chat_server.faults = ["none", "400", "null"]
    run.main(command(pocket_checkpoint, pictured, tmp_path / "out", *described_by(chat_server)))
    assert len(chat_server.asked) == 1 + 6
    said = capsys.readouterr().out
    assert re.search(r"2 images have no description: (status 400: no: None|an empty reply) \(1\), ", said)
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert Counter(record["condition"] for record in records) == {"given": 6, "described": 4}


def test_the_judge_does_not_hold_up_the_model(
    chat_server: Any, open_questions: Path, pocket_checkpoint: Path, warm_python: Path, tmp_path: Path
) -> None:
    """With a batch a reply, the last reply is there before the judge has answered a single question."""
    chat_server.faults, chat_server.later = ["none"], "never"
    words = command(
        pocket_checkpoint, open_questions, tmp_path / "out", "--batch-size", "1",
        *judged_by(chat_server, **{"--judge-timeout-s": "1000"}),
    )  # fmt: skip
    process = subprocess.Popen([warm_python, "-m", "eval.run", *words], cwd=REPOSITORY_ROOT)
    try:
        written = tmp_path / "out" / "records-0.jsonl"
        while process.poll() is None and not (written.exists() and written.read_bytes().count(b"\n") == NUM_OPEN + 1):
            time.sleep(0.02)
        assert process.poll() is None and len(chat_server.asked) <= 1 + 8
    finally:
        process.terminate()
    assert process.wait(timeout=200) == 75, "the judge does not hold up the end either"
    chat_server.released.set()
    chat_server.later = None
    run.main(words)
    assert outcomes(tmp_path / "out") == {"correct": NUM_OPEN}
