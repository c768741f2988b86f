"""Stored replies graded again: in place, nothing lost, nothing else touched."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.grading import CORRECT, INCORRECT, UNSCORED
from eval.regrade import BEFORE, main, regrade
from tracking.command import REPOSITORY_ROOT
from tracking.records import RecordLog, read_records
from tracking.run import open_run
from tracking.tables import read_table


def reply(response: str, gold: str, kind: str, verdict: tuple[str, str | None, str], **further: Any) -> dict[str, Any]:
    status, extracted, rule = verdict
    return {
        "response": response, "gold": gold, "answer_kind": kind,
        "status": status, "extracted": extracted, "rule": rule, **further,
    }  # fmt: skip


JUDGED = "answer tag; not comparable as number; judge"
REPLIES = [
    reply("<answer>5</answer>", "5", "number", (CORRECT, "5", "answer tag")),
    reply("<answer>1e3</answer>", "1000", "number", (INCORRECT, "1e3", "answer tag")),
    reply("The answer is 3.5.", "5", "number", (CORRECT, "5", "the answer is")),
    reply("<answer>1.24</answer>", "1.2", "number", (INCORRECT, "1.24", "answer tag"), precision=1),
    reply("It is B.", "12", "choice", (INCORRECT, None, "no answer"), choices=["10", "12"]),
    reply("<answer>7</answer>", "a few", "number", (CORRECT, "7", JUDGED)),
]
"""Verdicts of a faulty grader on 1000, 3.5, rounding and a letter, and of a language model on `a few`."""


def write_evaluation(directory: Path, replies: list[dict[str, Any]], *, finished: bool = True) -> Path:
    """Writes an output directory as `eval.run` leaves it."""
    from eval.statistics.scores import score_table
    from tracking.tables import write_table

    common = {"task": "test", "ability": "reasoning", "num_tokens": 3, "finish_reason": "stop", "well_formed": True}
    try:
        with open_run(directory, command="eval.run", settings={"model": "m"}):
            with RecordLog(directory / "records.jsonl") as log:
                for number, reply in enumerate(replies):
                    log.append({"key": f"test/{number}", "id": str(number), **common, **reply})
                write_table(directory / "scores.csv", score_table(list(log)))
            if not finished:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_replies_get_the_verdicts_of_today_and_keep_those_of_before(tmp_path: Path) -> None:
    directory = write_evaluation(tmp_path / "out", REPLIES)
    before = read_records(directory / "records.jsonl")
    assert read_table(directory / "scores.csv")["accuracy"].tolist() == [0.5]
    main([str(directory)])
    records = read_records(directory / "records.jsonl")
    assert [record["status"] for record in records] == [CORRECT, CORRECT, INCORRECT, CORRECT, CORRECT, CORRECT]
    assert read_table(directory / "scores.csv")["accuracy"].tolist() == pytest.approx([5 / 6], abs=1e-5)
    for old, new in zip(before, records, strict=True):
        verdicts = new.pop(BEFORE, [])
        assert {**new, **(verdicts[0] if verdicts else {})} == old, "nothing but the verdict changes"
    changes = pd.read_csv(directory / "regraded.csv", dtype=str)
    assert changes["key"].tolist() == [f"test/{number}" for number in (1, 2, 3, 4)]
    assert changes["status_before"].tolist() == [INCORRECT, CORRECT, INCORRECT, INCORRECT]
    assert changes["extracted_before"].tolist()[:3] == ["1e3", "5", "1.24"]
    assert changes["rule_before"].tolist()[-1] == "no answer"


def test_grading_again_changes_nothing_and_a_later_change_is_added(tmp_path: Path) -> None:
    directory = write_evaluation(tmp_path / "out", REPLIES)
    regrade(directory)
    first = contents(directory)
    assert regrade(directory) == []
    second = contents(directory)
    assert {name: first[name] for name in ("records.jsonl", "scores.csv", "regraded.csv")} == {
        name: second[name] for name in ("records.jsonl", "scores.csv", "regraded.csv")
    }
    records = read_records(directory / "records.jsonl")
    records[1]["gold"] = "2000"  # as if the rules had changed once more
    (directory / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (changed,) = regrade(directory)
    assert [verdict["status"] for verdict in changed[BEFORE]] == [INCORRECT, CORRECT]
    changes = pd.read_csv(directory / "regraded.csv")
    assert changes.loc[changes["key"] == "test/1", "status"].tolist() == [CORRECT, INCORRECT]


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_evaluation(tmp_path / "out", REPLIES)
    before = contents(directory)
    main([str(directory), "--dry-run"])
    assert contents(directory) == before
    said = capsys.readouterr().out
    assert "4 verdicts would change: 1 correct -> incorrect, 3 incorrect -> correct" in said
    assert "test/2: correct -> incorrect (the answer is): '3.5', gold '5'" in said


def test_a_language_models_verdict_stands_only_where_the_rules_have_none(tmp_path: Path) -> None:
    judged = {**REPLIES[0], "status": INCORRECT, "rule": JUDGED}
    failed = {**REPLIES[-1], "status": UNSCORED, "rule": f"{JUDGED}; no one-word verdict"}
    by_rule = {**REPLIES[-1], "rule": "answer tag"}
    directory = write_evaluation(tmp_path / "out", [judged, REPLIES[-1], failed, by_rule])
    assert [record["key"] for record in regrade(directory)] == ["test/0", "test/3"]
    records = read_records(directory / "records.jsonl")
    assert [record["status"] for record in records] == [CORRECT, CORRECT, UNSCORED, UNSCORED]


def test_what_is_no_finished_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no run\.json"):
        regrade(tmp_path)
    with pytest.raises(ValueError, match="run its evaluation to the end first"):
        regrade(write_evaluation(tmp_path / "cut", REPLIES, finished=False))
    with open_run(tmp_path / "other", command="eval.compare", settings={}):
        pass
    with pytest.raises(ValueError, match=r"written by eval\.compare; expected an output directory of eval\.run"):
        regrade(tmp_path / "other")
    without = [{key: value for key, value in REPLIES[0].items() if key != "gold"}]
    with pytest.raises(ValueError, match="record 'test/0' has no 'gold'"):
        regrade(write_evaluation(tmp_path / "old", without))


def test_the_command_runs_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    directory = write_evaluation(tmp_path / "out", REPLIES)
    program = (
        f"import sys; from eval.regrade import main; main([{str(directory)!r}, '--dry-run']); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
