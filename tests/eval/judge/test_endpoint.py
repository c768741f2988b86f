"""Asking a model behind an address, against a server in this process: faults, time, settings and the key."""

import email.utils
import logging
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from eval.judge.endpoint import MAX_FAILURES, SETTINGS, Endpoint, check_url
from eval.judge.reply import EndpointError, RefusedError, UnansweredError, UnusableReplyError, refusal_reason

SECRET = "sk-only-for-this-test"
MESSAGES = [{"role": "user", "content": "Which?"}]


def endpoint(server: Any, **changes: Any) -> Endpoint:
    values: dict[str, Any] = {"model": "judge", "key_variable": "TEST_KEY", "timeout_s": 0.3, "num_attempts": 3}
    return Endpoint(url=server.url, **{**values, **changes})


def test_a_question_is_one_greedy_chat_completion_with_the_key_of_the_environment(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = endpoint(chat_server, timeout_s=5)
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    monkeypatch.setenv("TEST_KEY", f"{SECRET}\n")
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    assert chat_server.asked == [{"model": "judge", "messages": MESSAGES, "max_tokens": 7, **SETTINGS}] * 2
    assert (SETTINGS["temperature"], SETTINGS["repetition_penalty"]) == (0, 1)
    assert [sent.get("Authorization") for sent in chat_server.headers] == [None, f"Bearer {SECRET}"]


@pytest.mark.parametrize(
    "fault",
    ["stall", "trickle", "trickling body", "429", "500", "503", "garbage", "other JSON", "deep JSON", "half a JSON",
     "cut connection", "closed connection"],
)  # fmt: skip
def test_what_may_go_better_is_tried_again_and_ends_in_time(chat_server: Any, fault: str) -> None:
    chat_server.faults = [fault, fault]
    begin = time.monotonic()
    assert endpoint(chat_server).ask(MESSAGES, max_tokens=7) == "correct"
    assert len(chat_server.asked) == 3
    chat_server.always = fault
    with pytest.raises(EndpointError, match=r"\(3 attempts\)"):
        endpoint(chat_server).ask(MESSAGES, max_tokens=7)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("400", "status 400"),
        ("401", "status 401; is the key in TEST_KEY right"),
        ("404", "status 404; is there such a model"),
        ("redirect", "status 302"),
        ("null", "an empty reply"),
        ("huge", "a reply of more than"),
    ],
)
def test_what_another_attempt_cannot_change_is_not_tried_again(chat_server: Any, fault: str, said: str) -> None:
    chat_server.always = fault
    with pytest.raises(EndpointError, match=said):
        endpoint(chat_server, timeout_s=5).ask(MESSAGES, max_tokens=7)
    assert len(chat_server.asked) == 1


CUT_IN_THOUGHTS = "^a reply cut in its thoughts$"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "^a reply cut at its limit$"),
        ({"content": "<think>2?</think> cor"}, "^a reply cut at its limit$"),
        ({"content": "cor", "reasoning_content": "2?"}, "^a reply cut at its limit$"),
        ({"content": None, "reasoning_content": "Well"}, CUT_IN_THOUGHTS),
        ({"content": "", "reasoning": "Well"}, CUT_IN_THOUGHTS),
        ({"content": "\n<think>Well"}, CUT_IN_THOUGHTS),
        ({"content": "[THINK]Well"}, CUT_IN_THOUGHTS),
        ({"content": [{"type": "thinking", "thinking": []}]}, CUT_IN_THOUGHTS),
        (None, CUT_IN_THOUGHTS),
    ],
)
def test_a_reply_cut_at_its_limit_or_in_its_thoughts_is_no_reply(
    message: dict[str, Any] | None, said: str, chat_server: Any
) -> None:
    if message is None:  # some servers send no content at all
        chat_server.message, chat_server.has_content = {"reasoning_content": "Well"}, False
    else:
        chat_server.message = message
    chat_server.finish_reason = "length"
    asked = endpoint(chat_server, timeout_s=5)
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises(UnusableReplyError, match=said):
            asked.ask(MESSAGES, max_tokens=7)
    chat_server.message, chat_server.has_content, chat_server.finish_reason = {}, True, "stop"
    assert asked.ask(MESSAGES, max_tokens=7) == "correct", "the endpoint is still asked"


def test_settings_that_an_endpoint_refuses_by_name_are_left_out_from_then_on(chat_server: Any) -> None:
    chat_server.unknown = ("repetition_penalty", "presence_penalty")
    asked = endpoint(chat_server, timeout_s=5)
    assert asked.settings == SETTINGS
    assert [asked.ask(MESSAGES, max_tokens=7) for _ in range(2)] == ["correct"] * 2
    assert len(chat_server.asked) == 4
    left = {"temperature": 0, "top_p": 1, "frequency_penalty": 0}
    assert chat_server.asked[-1] == {"model": "judge", "messages": MESSAGES, "max_tokens": 7, **left}
    assert asked.settings == left


def test_a_refusal_that_repeats_the_question_costs_no_setting(chat_server: Any) -> None:
    chat_server.repeats_question, chat_server.faults = True, ["400", "400"]
    asked = endpoint(chat_server, timeout_s=5)
    with pytest.raises(RefusedError, match="status 400"):
        asked.ask(MESSAGES, max_tokens=7)
    assert asked.settings == SETTINGS
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    assert chat_server.asked[-1]["repetition_penalty"] == 1


@pytest.mark.parametrize(
    ("reply", "message", "read"),
    [
        ("<think>red?\nno</think>\n\nblue", {}, "blue"),
        ("red? no</think>blue", {}, "blue"),
        ("blue", {"reasoning_content": "red? no"}, "blue"),
        ("", {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "blue"}]}, "blue"),
        ("[THINK]red? no[/THINK]blue", {}, "blue"),
        ("<think>red? no, blue", {}, None),
        ("<think>red?</think>\n", {}, None),
        ("", {"content": None, "reasoning": "red?"}, None),
    ],
)
def test_thoughts_are_not_read(reply: str, message: dict[str, Any], read: str | None, chat_server: Any) -> None:
    chat_server.reply, chat_server.message = reply, message
    asked = endpoint(chat_server, timeout_s=5)
    if read is None:
        with pytest.raises(UnusableReplyError, match="thoughts without a reply"):
            asked.ask(MESSAGES, max_tokens=7)
    else:
        assert asked.ask(MESSAGES, max_tokens=7).strip() == read


@pytest.mark.parametrize("fault", ["cut", "empty", "400"])
def test_what_becomes_of_one_question_says_nothing_of_the_endpoint(fault: str, chat_server: Any) -> None:
    asked = endpoint(chat_server, timeout_s=5)
    chat_server.finish_reason = "length" if fault == "cut" else "stop"
    chat_server.reply = "" if fault == "empty" else "correct"
    chat_server.always = "400" if fault == "400" else None
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises((UnusableReplyError, RefusedError)):
            asked.ask(MESSAGES, max_tokens=7)
    chat_server.finish_reason, chat_server.reply, chat_server.always = "stop", "correct", None
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("404", "status 404; is there such a model"), ("503", r"status 503 \(2 attempts\)"),
     ("400", "status 400: no: None; correct what it names"),
     ("garbage", "no chat completion"), ("401", "is the key in TEST_KEY right")],
)  # fmt: skip
def test_an_endpoint_is_tried_before_long_work(fault: str, said: str, chat_server: Any) -> None:
    chat_server.finish_reason = "length"
    endpoint(chat_server, timeout_s=5).check(MESSAGES, max_tokens=7, option="judge_url")
    chat_server.always = fault
    with pytest.raises(ValueError, match=f"judge_url: the endpoint 127.0.0.1:.* for model 'judge': .*{said}"):
        endpoint(chat_server, timeout_s=5).check(MESSAGES, max_tokens=7, option="judge_url")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(chat_server: Any, form: str) -> None:
    chat_server.faults = ["429"]
    chat_server.retry_after = "0.5" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    endpoint(chat_server, timeout_s=5).ask(MESSAGES, max_tokens=7)
    first, second = chat_server.times
    assert second - first > 0.4


def test_waits_grow_from_attempt_to_attempt(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.1)
    chat_server.always = "500"
    with pytest.raises(EndpointError):
        endpoint(chat_server, timeout_s=5, num_attempts=4).ask(MESSAGES, max_tokens=7)
    gaps = [after - before for before, after in zip(chat_server.times, chat_server.times[1:], strict=False)]
    assert [gap >= 0.075 * 2**n for n, gap in enumerate(gaps)] == [True, True, True]


def test_nobody_listening_is_an_error_in_time() -> None:
    asked = Endpoint(
        url="http://127.0.0.1:9/v1",
        model="m",
        key_variable="TEST_KEY",
        timeout_s=0.5,
        num_attempts=2,
    )
    with pytest.raises(EndpointError, match=r"no connection \(\[Errno \d+\] Connection refused\) \(2 attempts\)"):
        asked.ask(MESSAGES, max_tokens=7)


def test_an_endpoint_that_fails_again_and_again_is_asked_no_more_and_that_is_said_once(
    chat_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = endpoint(chat_server, timeout_s=5)
    chat_server.faults = ["401"] * (MAX_FAILURES - 1)
    for _ in range(MAX_FAILURES - 1):
        with pytest.raises(UnansweredError, match="status 401"):
            asked.ask(MESSAGES, max_tokens=7)
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    chat_server.always = "401"
    refused = "^status 401"
    for number in range(MAX_FAILURES + 3):
        given_up = "not asked after 5 failures in a row, the last: status 401; is the key"
        with pytest.raises(UnansweredError, match=refused if number < MAX_FAILURES else given_up):
            asked.ask(MESSAGES, max_tokens=7)
    assert len(chat_server.asked) == 2 * MAX_FAILURES
    assert capsys.readouterr().err.count("is asked no more") == 1


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """What is logged at any level."""
    root, handler = logging.getLogger(), logging.StreamHandler(StringIO())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.stream
    root.setLevel(level)
    root.removeHandler(handler)


def test_the_key_is_in_no_error_no_reply_no_log_and_no_representation(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logged: StringIO
) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)
    asked = endpoint(chat_server)
    said = [repr(asked), str(vars(asked))]
    for fault in ("400", "401", "404", "429", "500", "redirect", "garbage", "closed connection", "stall"):
        chat_server.always = fault
        with pytest.raises(EndpointError) as raised:
            endpoint(chat_server, num_attempts=1).ask(MESSAGES, max_tokens=7)
        said.append(repr(raised.value))
    chat_server.always, chat_server.echoes_key = None, True
    said.append(endpoint(chat_server, timeout_s=5).ask(MESSAGES, max_tokens=7))
    assert said[-1] == "correct[key]"
    assert all(SECRET in sent["Authorization"] for sent in chat_server.headers)
    captured = capsys.readouterr()
    assert "/chat/completions" in logged.getvalue(), "the client logs its requests"
    assert SECRET not in "".join(said) + captured.out + captured.err + logged.getvalue()


@pytest.mark.parametrize("key", [f"{SECRET}\nX: y", f"{SECRET} two", f"{SECRET}é"])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ValueError, match="the key in TEST_KEY has signs that no header takes") as raised:
        Endpoint(url="http://127.0.0.1:9/v1", model="m", key_variable="TEST_KEY", timeout_s=1, num_attempts=1)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://a/v1", "http:///v1", "http://[a/v1", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL; expected for example"):
        check_url(url)


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@a/v1", f"https://a/v1?key={SECRET}"])
def test_an_address_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint at a carries more than a path") as raised:
        check_url(url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"error": {"message": "at most 4096 tokens;\\n5012 asked", "code": 400}}', "at most 4096 tokens, 5012 asked"),
        ('{"object": "error", "message": "no images for {key}"}', "no images for Bearer [key]"),
        ('{"error": "{key}"}', "Bearer [key]"),
        ('{"detail": [{"msg": "field required"}]}', '[{"msg": "field required"}]'),
        ("too long", "too long"),
        ("<html>\n<body>Bad Request</body></html>", ""),
        ("", ""),
        ("x" * 195 + "{key}", "x" * 195 + "Bear…"),
    ],
)
def test_the_reason_of_a_refusal_is_told_in_one_line_without_the_key(
    body: str, told: str, chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)
    chat_server.always, chat_server.refusal = "400", body
    with pytest.raises(RefusedError) as raised:
        endpoint(chat_server, timeout_s=5).ask(MESSAGES, max_tokens=7)
    assert str(raised.value) == (f"status 400: {told}" if told else "status 400")


def test_a_reason_that_is_deeply_nested_or_long_stays_short() -> None:
    assert refusal_reason("[" * 100_000).startswith("[[")
    assert len(refusal_reason('{"error": "' + "long " * 1000 + '"}')) <= 200


def test_no_key_but_that_of_the_named_variable_is_sent(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads variables of its own, which must not reach an endpoint that another variable is named for."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {SECRET}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    asked = endpoint(chat_server, timeout_s=5)
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    monkeypatch.setenv("TEST_KEY", "another")
    assert asked.ask(MESSAGES, max_tokens=7) == "correct"
    assert [sent.get("Authorization") for sent in chat_server.headers] == [None, "Bearer another"]
    assert SECRET not in str(chat_server.headers)


def test_a_wait_that_is_too_long_ends_the_question(chat_server: Any) -> None:
    chat_server.always, chat_server.retry_after = "429", "3600"
    begin = time.monotonic()
    with pytest.raises(UnansweredError, match=r"^status 429$"):
        endpoint(chat_server, timeout_s=5).ask(MESSAGES, max_tokens=7)
    assert len(chat_server.asked) == 1 and time.monotonic() - begin < 5
