"""How is a model behind an address asked? One chat completion of any OpenAI-compatible endpoint, in bounded time.

An attempt ends after `timeout_s` whatever the server does: it runs in a thread that is left behind then. Attempts that
may go better are repeated after 1, 2, 4, … seconds, or when the server says (`Retry-After`, up to a minute).

There are three ways to get no reply. The endpoint fails (no connection, 5xx, a timeout, garbage, no such model): the
question is unanswered, and an endpoint that fails many in a row is asked no more in this run. It refuses this question
(400, 413, 422: too long, say), or its reply cannot be used (cut at its limit, empty): that is the question's own result
and says nothing about the next one.

Every setting that changes a reply is sent (`SETTINGS`), since a server may have defaults of its own: vLLM's takes the
repetition penalty of the checkpoint's `generation_config.json`. Where an endpoint refuses one of `OPTIONAL` by name,
the question is asked again without it, and so are the next ones; `Endpoint.settings` says what is sent in the end.

A model that thinks may do so: thoughts in `reasoning_content` are not read, and those before `</think>` are cut off.

The key is read from the environment for each request. It is never stored, and it is taken out of what the server
replies; redirects, which would carry it elsewhere, are not followed. Errors name the status, not the server's words.
"""

import email.utils
import http.client
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlsplit

MAX_WAIT_S = 60.0
"""Between two attempts."""
MAX_REPLY_BYTES = 4 * 2**20
MAX_FAILURES = 5
"""Questions in a row that the endpoint failed, for each that is asked at once, after which it counts as gone."""
REPEATED_STATUS = frozenset((408, 409, 425, 429))
"""Beside 500 and above: what another attempt may change."""
REFUSED_STATUS = frozenset((400, 413, 422))
"""What a server says of one question; any other says something of the server, the model or the key."""
MAX_REFUSAL_BYTES = 2**16
SETTINGS: dict[str, float] = {
    "temperature": 0,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
}
"""Greedy, and nothing else."""
OPTIONAL = ("top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Left out where an endpoint does not know them; the last is vLLM's and not OpenAI's."""
THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"
CHECK_ATTEMPTS = 2
KEY_TAKEN_OUT = "[key]"

Messages = list[dict[str, Any]]


class EndpointError(Exception):
    """There is no reply; `str()` says why in a few words without the key."""


class UnansweredError(EndpointError):
    """The endpoint failed; the same question may be answered another time."""


class RefusedError(EndpointError):
    """The endpoint refused this question."""


class UnusableReplyError(EndpointError):
    """The endpoint replied to this question, and the reply is cut, empty or endless."""


class _BadRequestError(Exception):
    """A refusal, with the server's words, which are searched and never shown."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(status)
        self.status, self.words = status, words


class _WorthRepeatingError(Exception):
    """An attempt that failed and may go better; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint and one of its models."""

    url: str
    """Up to and with its version: `http://localhost:8000/v1`."""
    model: str
    key_variable: str
    """The environment variable that holds the key; without it none is sent."""
    timeout_s: float
    """Of one attempt."""
    num_attempts: int
    first_wait_s: float = 1.0
    num_at_once: int = 1
    """Questions that its callers ask side by side."""
    failures: int = field(default=0, init=False)
    """Questions in a row that it failed."""
    given_up: str = field(default="", init=False)
    """Why it is not asked at all; empty where it is."""
    _last_failure: str = field(default="", init=False, repr=False)
    _left_out: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.timeout_s <= 0 or self.num_attempts < 1:
            raise ValueError(
                f"timeout_s is {self.timeout_s}, num_attempts {self.num_attempts}; expected above 0 and at least 1"
            )
        _read_key(self.key_variable)

    @property
    def settings(self) -> dict[str, float]:
        """What is sent beside the messages and the limit, as far as this endpoint takes it."""
        return {name: value for name, value in SETTINGS.items() if name not in self._left_out}

    @property
    def place(self) -> str:
        """The endpoint in words, without its path."""
        return f"the endpoint {urlsplit(self.url).netloc}"

    def check(self, messages: Messages, *, max_tokens: int, option: str) -> None:
        """Asks once, as all questions are asked, before long work begins.

        Args:
            messages: a small question of the same kind.
            max_tokens: as of all questions, since an endpoint may refuse it beyond its model's context.
            option: the argument that named the endpoint.

        Raises:
            ValueError: where it does not answer, or refuses the question.
        """
        try:
            self._attempts(messages, max_tokens, min(CHECK_ATTEMPTS, self.num_attempts))
        except UnusableReplyError:
            return  # it is there and answers
        except EndpointError as error:
            raise ValueError(
                f"{option}: {self.place} does not answer for model {self.model!r}: {error}; start it, or correct the "
                "address or the model's name"
            ) from None

    def ask(self, messages: Messages, *, max_tokens: int) -> str:
        """Returns the text of one greedy reply that the model ended itself, without its thoughts.

        Raises:
            UnansweredError: where the endpoint fails.
            RefusedError: where it refuses this question.
            UnusableReplyError: where its reply is cut, empty or too long to read.
        """
        if self.given_up:
            raise UnansweredError(self.given_up)
        most = MAX_FAILURES * self.num_at_once
        if self.failures >= most:
            raise UnansweredError(f"not asked after {most} failures in a row, the last: {self._last_failure}")
        try:
            reply = self._attempts(messages, max_tokens, self.num_attempts)
        except UnansweredError as error:
            with self._lock:
                self.failures += 1
                self._last_failure = str(error)
                if self.failures == most:
                    print(
                        f"{self.place} is asked no more after {most} failures in a row, the last: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
            raise
        except EndpointError:
            self.failures = 0
            raise
        self.failures = 0
        return reply

    def _attempts(self, messages: Messages, max_tokens: int, num_attempts: int) -> str:
        question = {"model": self.model, "messages": messages, "max_tokens": max_tokens}
        for attempt in range(num_attempts):
            try:
                return self._negotiated(question)
            except _WorthRepeatingError as error:
                if attempt + 1 == num_attempts:
                    times = f" ({num_attempts} attempts)" if num_attempts > 1 else ""
                    raise UnansweredError(f"{error}{times}") from None
                backoff = self.first_wait_s * 2**attempt * random.uniform(0.75, 1.25)
                time.sleep(min(max(backoff, error.wait_s or 0.0), MAX_WAIT_S))
        raise AssertionError("the last attempt returns or raises")

    def _negotiated(self, question: dict[str, Any]) -> str:
        """Asks with every setting, and again without those that the endpoint refuses by name.

        They are left out of later questions only where that made the difference: a server that repeats the whole
        question in its refusal names them all.
        """
        left_out = self._left_out
        while True:
            settings = {name: value for name, value in SETTINGS.items() if name not in left_out}
            try:
                answer = self._one_attempt(json.dumps(question | settings).encode())
            except _BadRequestError as refusal:
                named = {name for name in OPTIONAL if name in settings and name in refusal.words}
                if not named:
                    raise RefusedError(f"status {refusal.status}") from None
                left_out |= named
                continue
            self._left_out = left_out
            return _content(answer, _read_key(self.key_variable))

    def _one_attempt(self, data: bytes) -> bytes:
        """Posts in a thread of its own, so that no server can hold this one longer than `timeout_s`."""
        outcome: list[bytes | Exception] = []

        def work() -> None:
            try:
                outcome.append(self._post(data))
            except Exception as error:  # it is raised again below, in the thread that waits
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        if not outcome:
            raise _WorthRepeatingError(f"no whole reply within {self.timeout_s:g} s")
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _post(self, data: bytes) -> bytes:
        key = _read_key(self.key_variable)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=data, headers=headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as answer:
                return _read_body(answer, time.monotonic() + self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _WorthRepeatingError(f"no connection ({type(cause).__name__})") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        status = error.code
        if status in REPEATED_STATUS or status >= 500:
            return _WorthRepeatingError(f"status {status}", _retry_after(error.headers.get("Retry-After")))
        if status in REFUSED_STATUS:
            return _BadRequestError(status, error.read(MAX_REFUSAL_BYTES).decode(errors="replace"))
        hint = {
            401: f"; is the key in {self.key_variable} right?",
            403: f"; may the key in {self.key_variable} use this model?",
            404: "; is there such a model, and does the address end in its version, such as /v1?",
        }.get(status, "")
        return UnansweredError(f"status {status}{hint}")


def check_url(url: str) -> None:
    """Refuses what is no address of an endpoint, and one that carries a password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ValueError(f"endpoint {url!r} is no address; expected for example http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"the address of the endpoint at {host} carries more than a path; expected for example "
            "http://localhost:8000/v1, with the key in the environment"
        )


def _read_key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip()
    if not all("!" <= sign <= "~" for sign in key):
        raise ValueError(f"the key in {variable} has signs that no header takes; correct the variable")
    return key or None


def _read_body(answer: IO[bytes], deadline: float) -> bytes:
    parts, size = [], 0
    while part := answer.read(2**16):
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise UnusableReplyError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _WorthRepeatingError("no whole reply in time")
    return b"".join(parts)


def without_thoughts(reply: str) -> str:
    """Returns a reply from where its thoughts end; empty where they do not.

    A chat template may open the thoughts in the prompt, so that the reply holds their end alone.
    """
    rest = reply.rpartition(THOUGHTS_END)[2]
    return "" if rest.lstrip().startswith(THOUGHTS_BEGIN) else rest


def _content(body: bytes, key: str | None) -> str:
    try:
        choice = json.loads(body)["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _WorthRepeatingError("a reply that is no chat completion") from None
    if reason == "length":
        raise UnusableReplyError("a reply cut at its limit")
    if not isinstance(text, str) or not text.strip():
        raise UnusableReplyError("an empty reply")
    reply = without_thoughts(text)
    if not reply.strip():
        raise UnusableReplyError("thoughts without a reply")
    return reply.replace(key, KEY_TAKEN_OUT) if key else reply


def _retry_after(value: str | None) -> float | None:
    """Returns the seconds that a server asks to wait: a number, or until a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, until - time.time())
