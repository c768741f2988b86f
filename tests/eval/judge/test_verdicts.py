"""The judge of what the rules leave unscored, a server in this process: no fault of it makes a sample wrong."""

import time
from pathlib import Path
from typing import Any

import pytest

from eval.grading import CORRECT, INCORRECT, UNSCORED, Verdict, grade
from eval.judge.cache import ReplyCache
from eval.judge.endpoint import Endpoint
from eval.judge.verdicts import (
    JUDGE_FILE,
    MAX_RESPONSE_CHARS,
    Judge,
    JudgeArguments,
    Judging,
    judge_prompt,
    open_judge,
    read_verdict,
    report,
)

SECRET = "sk-only-for-this-test"
UNDECIDED = Verdict(UNSCORED, "B. 12", "answer tag; not comparable as choice")
SAMPLE = {"question": "How much?", "gold": "12", "response": "<answer>B. 12</answer>"}


def arguments(server: Any, **changes: Any) -> JudgeArguments:
    return JudgeArguments(**{"judge_url": server.url, "judge_model": "m", "judge_timeout_s": 5.0, **changes})


def quick_judge(server: Any, directory: Path) -> Judge:
    """A judge whose attempts end soon and follow each other quickly."""
    endpoint = Endpoint(url=server.url, model="m", key_variable="OPENAI_API_KEY", timeout_s=0.3, num_attempts=2)
    return Judge(endpoint, ReplyCache(directory / JUDGE_FILE), max_tokens=64)


def record_of(verdict: Verdict, key: str, sample: dict[str, str]) -> dict[str, Any]:
    """Returns a record as the grader leaves it."""
    return {
        "key": key, "gold": sample["gold"], "response": sample["response"],
        "status": verdict.status, "extracted": verdict.extracted, "rule": verdict.rule,
    }  # fmt: skip


def with_judge(verdict: Verdict, judge: Judge | None, **sample: str) -> Verdict:
    """Returns what an evaluation's record of one reply says in the end."""
    assert judge is not None
    (record,) = Judging(judge).finish([record_of(verdict, "a", sample)], {"a": sample["question"]})
    return Verdict(record["status"], record["extracted"], record["rule"])


@pytest.mark.parametrize(("word", "status"), [("correct", CORRECT), ("Incorrect.", INCORRECT)])
def test_the_judge_decides_what_the_rules_leave_unscored(
    word: str, status: str, chat_server: Any, tmp_path: Path
) -> None:
    chat_server.reply = word
    judge = open_judge(arguments(chat_server), tmp_path)
    verdict = with_judge(UNDECIDED, judge, **SAMPLE)
    assert verdict == Verdict(status, "B. 12", "answer tag; not comparable as choice; judge")
    asked = chat_server.asked[0]["messages"][1]["content"]
    assert all(text in asked for text in SAMPLE.values())


def test_the_judge_is_not_asked_about_what_a_rule_decides(chat_server: Any, tmp_path: Path) -> None:
    judge = open_judge(arguments(chat_server), tmp_path)
    for response in ("12", "13"):
        verdict = grade(response, "12", "number")
        assert with_judge(verdict, judge, question="How much?", gold="12", response=response) == verdict
    assert chat_server.asked == []


@pytest.mark.parametrize(
    "reply",
    ["maybe", "correct or incorrect", "The answer is correct", "incorrect, not correct", "not correct", "yes", "1",
     "correct\nincorrect", "corrected"],
)  # fmt: skip
def test_a_reply_that_is_not_the_one_word_decides_nothing_and_is_asked_again(
    reply: str, chat_server: Any, tmp_path: Path
) -> None:
    chat_server.reply = reply
    judge = open_judge(arguments(chat_server), tmp_path)
    assert with_judge(UNDECIDED, judge, **SAMPLE).status == UNSCORED
    chat_server.reply = "correct"
    assert with_judge(UNDECIDED, judge, **SAMPLE).status == CORRECT


@pytest.mark.parametrize("reply", ["correct", "Correct", " **correct**.\n", "`correct`"])
def test_the_one_word_may_be_dressed(reply: str) -> None:
    assert read_verdict(reply) == CORRECT


@pytest.mark.parametrize(
    "fault",
    ["stall", "trickle", "429", "500", "400", "401", "404", "redirect", "garbage", "other JSON", "half a JSON",
     "cut connection", "closed connection", "null"],
)  # fmt: skip
def test_no_sample_is_wrong_for_a_fault_of_the_judge_and_a_later_run_asks_again(
    fault: str, chat_server: Any, tmp_path: Path
) -> None:
    chat_server.always = fault
    begin = time.monotonic()
    verdict = with_judge(UNDECIDED, quick_judge(chat_server, tmp_path), **SAMPLE)
    assert time.monotonic() - begin < 2
    assert (verdict.status, verdict.extracted, verdict.correct) == (UNSCORED, "B. 12", None)
    kind = "judge" if fault in ("400", "null") else "judge failed"
    assert verdict.rule.startswith(f"{UNDECIDED.rule}; {kind}; ")
    chat_server.always = None
    assert with_judge(UNDECIDED, quick_judge(chat_server, tmp_path), **SAMPLE).status == CORRECT


def test_a_judge_that_recovers_within_its_attempts_decides(chat_server: Any, tmp_path: Path) -> None:
    chat_server.faults = ["429"]
    assert with_judge(UNDECIDED, quick_judge(chat_server, tmp_path), **SAMPLE).status == CORRECT
    assert len(chat_server.asked) == 2


def test_verdicts_are_kept_by_model_and_content(chat_server: Any, tmp_path: Path) -> None:
    for _ in range(2):
        judge = open_judge(arguments(chat_server), tmp_path)
        for sample in (SAMPLE, SAMPLE | {"gold": "13"}, SAMPLE | {"response": "14"}, SAMPLE | {"question": "Why?"}):
            assert with_judge(UNDECIDED, judge, **sample).status == CORRECT
    assert len(chat_server.asked) == 4
    chat_server.reply = "incorrect"
    assert with_judge(UNDECIDED, open_judge(arguments(chat_server), tmp_path), **SAMPLE).status == CORRECT
    other = open_judge(arguments(chat_server, judge_model="n"), tmp_path)
    assert with_judge(UNDECIDED, other, **SAMPLE).status == INCORRECT


def test_the_key_is_sent_and_stands_in_no_file_and_no_log(
    chat_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    chat_server.echoes_key = True
    verdicts = [with_judge(UNDECIDED, open_judge(arguments(chat_server), tmp_path), **SAMPLE)]
    chat_server.echoes_key = False
    judge = quick_judge(chat_server, tmp_path)
    verdicts.append(with_judge(UNDECIDED, judge, **SAMPLE))
    chat_server.always = "400"
    verdicts.append(with_judge(UNDECIDED, judge, **SAMPLE | {"gold": "refused"}))
    assert verdicts[-1].rule == f"{UNDECIDED.rule}; judge; status 400: no: Bearer [key]"
    chat_server.always = "401"
    verdicts += [with_judge(UNDECIDED, judge, **SAMPLE | {"gold": str(number)}) for number in range(7)]
    assert [verdict.status for verdict in verdicts] == [UNSCORED, CORRECT, *[UNSCORED] * 8]
    assert all(sent["Authorization"] == f"Bearer {SECRET}" for sent in chat_server.headers)
    captured = capsys.readouterr()
    assert "is asked no more" in captured.err
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in written + repr(verdicts) + captured.out + captured.err


def test_the_judge_reads_the_end_of_a_long_reply() -> None:
    prompt = judge_prompt("How much?", "12", "x" * 10_000 + "so 12")
    assert prompt.endswith("so 12\n[end of reply]")
    assert prompt.count("x") == MAX_RESPONSE_CHARS - len("so 12")


def test_without_an_address_there_is_no_judge(tmp_path: Path) -> None:
    assert open_judge(JudgeArguments(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="judge_url and judge_model go together"):
        JudgeArguments(judge_url="http://localhost/v1")
    with pytest.raises(ValueError, match="is not a URL"):
        JudgeArguments(judge_url="localhost", judge_model="m")


def test_questions_are_asked_side_by_side_equal_ones_once_and_records_keep_their_order(
    chat_server: Any, tmp_path: Path
) -> None:
    chat_server.delay_s = 0.1
    judge = open_judge(arguments(chat_server), tmp_path)
    assert judge is not None
    samples = [SAMPLE | {"response": f"<answer>{number % 12}</answer>"} for number in range(36)]
    records = [record_of(UNDECIDED, str(number), sample) for number, sample in enumerate(samples)]
    decided = record_of(Verdict(CORRECT, "12", "answer tag"), "by a rule", SAMPLE)
    questions = {record["key"]: SAMPLE["question"] for record in [*records, decided]}
    working = Judging(judge)
    working.start(records[:20], questions)
    found = working.finish([*records, decided], questions)
    assert [record["key"] for record in found] == [*map(str, range(36)), "by a rule"]
    assert [record["status"] for record in found] == [CORRECT] * 37
    assert found[-1] is decided
    assert len(chat_server.asked) == 12
    assert 1 < chat_server.most_at_once <= 8


def test_a_report_tells_unanswered_questions_from_undecided_ones_each_by_its_reason() -> None:
    def record(status: str, rule: str) -> dict[str, Any]:
        return {"status": status, "rule": f"answer tag; not comparable as text{rule}"}

    found = report(
        [
            {"status": CORRECT, "rule": "answer tag"}, record(UNSCORED, ""), record(CORRECT, "; judge"),
            record(INCORRECT, "; judge"), record(UNSCORED, "; judge; a reply cut at its limit"),
            record(UNSCORED, "; judge failed; status 503 (4 attempts)"),
            record(UNSCORED, "; judge failed; status 503 (4 attempts)"),
            record(UNSCORED, "; judge failed; no connection"),
        ]
    )  # fmt: skip
    assert found.unanswered_line == (
        "3 of 6 judge questions had no answer: status 503 (4 attempts) (2), no connection (1)"
    )
    assert found.undecided_line == (
        "1 of 6 judge questions got no verdict: a reply cut at its limit; --judge-max-tokens raises the limit "
        "(with --overwrite, or in another --output-dir)"
    )


@pytest.mark.parametrize("reply", ["<think>2?</think>\n\ncorrect", "So it is the same.</think> correct"])
def test_a_judge_may_think_before_its_verdict(reply: str, chat_server: Any, tmp_path: Path) -> None:
    chat_server.reply = reply
    judge = open_judge(arguments(chat_server, judge_max_tokens=4096), tmp_path)
    assert with_judge(UNDECIDED, judge, **SAMPLE).status == CORRECT
    assert chat_server.asked[0]["max_tokens"] == 4096


def test_a_judge_that_is_cut_in_its_thoughts_is_told_and_goes_on_being_asked(
    chat_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_server.finish_reason, chat_server.message = "length", {"content": None, "reasoning_content": "Let me see"}
    judge = open_judge(arguments(chat_server), tmp_path)
    assert judge is not None
    judge.check()
    hint = "a reply cut in its thoughts; --judge-max-tokens raises the limit"
    assert f"note: it answered with {hint}" in capsys.readouterr().err
    samples = [record_of(UNDECIDED, str(number), SAMPLE | {"gold": str(number)}) for number in range(50)]
    found = Judging(judge).finish(samples, {record["key"]: SAMPLE["question"] for record in samples})
    assert {record["rule"] for record in found} == {f"{UNDECIDED.rule}; judge; a reply cut in its thoughts"}
    assert report(found).undecided_line.startswith(f"50 of 50 judge questions got no verdict: {hint} (with")
    assert report(found).unanswered_line.startswith("0 of 50")
    assert len(chat_server.asked) == 1 + 50


def test_many_different_reasons_are_told_in_one_short_line() -> None:
    records = [
        {"status": UNSCORED, "rule": f"answer tag; judge; status 400: {number} tokens are too many"}
        for number in range(40)
    ]
    assert report(records).undecided_line.endswith("4 tokens are too many (1), 35 other reasons")
