"""Requests one chat completion from an OpenAI-compatible endpoint, in bounded time.

An attempt ends after `timeout_s` whatever the server does: it runs in a thread that is then abandoned. Attempts that
may succeed later are repeated after 1, 2, 4, … seconds, or as the server asks (`Retry-After`, up to a minute).

There are three kinds of failure. The endpoint fails (no connection, 5xx, a timeout, an invalid response, no such
model): the question is unanswered, and after many failures in a row the endpoint is not used again in this run. It
refuses the question (400, 413, 422, for example too long), or the reply is unusable (truncated at its limit, empty):
this is a result for that question only.

Every setting that affects a reply is sent (`SETTINGS`), since servers have their own defaults: vLLM's uses the
repetition penalty of the checkpoint's `generation_config.json`. If an endpoint refuses one of `OPTIONAL` by name, this
question and later ones are sent without it; `Endpoint.settings` lists what is sent in the end.

Reasoning models are supported: thoughts in `reasoning_content` are ignored, and those before `</think>` are removed.

The key is read from the environment for each request. It is never stored, and it is removed from the server's replies;
redirects, which would send it elsewhere, are not followed. Errors state the status, not the server's message.
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
"""Maximum wait between two attempts."""
MAX_REPLY_BYTES = 4 * 2**20
MAX_FAILURES = 5
"""Failures in a row, per concurrent question, after which the endpoint is considered unavailable."""
REPEATED_STATUS = frozenset((408, 409, 425, 429))
"""Statuses besides 5xx for which another attempt may succeed."""
REFUSED_STATUS = frozenset((400, 413, 422))
"""Statuses that concern a single question; others concern the server, the model or the key."""
MAX_REFUSAL_BYTES = 2**16
SETTINGS: dict[str, float] = {
    "temperature": 0,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
}
"""Plain greedy decoding."""
OPTIONAL = ("top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Omitted if an endpoint does not support them; the last is specific to vLLM."""
THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"
CHECK_ATTEMPTS = 2
KEY_TAKEN_OUT = "[key]"

Messages = list[dict[str, Any]]


class EndpointError(Exception):
    """There is no reply; `str()` gives a short reason without the key."""


class UnansweredError(EndpointError):
    """The endpoint failed; the same question may succeed later."""


class RefusedError(EndpointError):
    """The endpoint refused this question."""


class UnusableReplyError(EndpointError):
    """The endpoint's reply to this question is truncated, empty or too long."""


class _BadRequestError(Exception):
    """A refusal with the server's message, which is searched but never shown."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(status)
        self.status, self.words = status, words


class _WorthRepeatingError(Exception):
    """An attempt that failed and may succeed later; `wait_s` is the wait requested by the server."""

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
    """URL including the version: `http://localhost:8000/v1`."""
    model: str
    key_variable: str
    """Environment variable with the key; if unset, no key is sent."""
    timeout_s: float
    """Time limit of one attempt."""
    num_attempts: int
    first_wait_s: float = 1.0
    num_at_once: int = 1
    """Number of concurrent questions."""
    failures: int = field(default=0, init=False)
    """Number of failures in a row."""
    given_up: str = field(default="", init=False)
    """Why it is no longer used; empty while it is."""
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
        """Settings sent along with the messages and the limit, as far as this endpoint accepts them."""
        return {name: value for name, value in SETTINGS.items() if name not in self._left_out}

    @property
    def place(self) -> str:
        """Description of the endpoint, without its path."""
        return f"the endpoint {urlsplit(self.url).netloc}"

    def check(self, messages: Messages, *, max_tokens: int, option: str) -> None:
        """Sends one test question, in the same way as all others, before long work begins.

        Args:
            messages: a small question of the same kind.
            max_tokens: as for all questions, since an endpoint may refuse a value beyond its model's context.
            option: the argument that named the endpoint.

        Raises:
            ValueError: if it does not answer, or refuses the question.
        """
        try:
            self._attempts(messages, max_tokens, min(CHECK_ATTEMPTS, self.num_attempts))
        except UnusableReplyError:
            return  # the endpoint works
        except EndpointError as error:
            raise ValueError(
                f"{option}: {self.place} does not answer for model {self.model!r}: {error}; start it, or correct the "
                "address or the model's name"
            ) from None

    def ask(self, messages: Messages, *, max_tokens: int) -> str:
        """Returns the text of one complete greedy reply, without thoughts.

        Raises:
            UnansweredError: if the endpoint fails.
            RefusedError: if it refuses this question.
            UnusableReplyError: if its reply is truncated, empty or too long to read.
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
        """Sends all settings, and retries without those that the endpoint refuses by name.

        They are omitted from later questions only if that helped: a server that echoes the whole request in its refusal
        names all of them.
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
        """Posts in a separate thread, so that no server can block the caller longer than `timeout_s`."""
        outcome: list[bytes | Exception] = []

        def work() -> None:
            try:
                outcome.append(self._post(data))
            except Exception as error:  # raised again below, in the waiting thread
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
    """Rejects a URL that is not an endpoint's, or that contains a password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ValueError(f"endpoint {url!r} is not a URL; expected for example http://localhost:8000/v1")
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
    """Returns a reply without its thoughts; empty if they do not end.

    A chat template may open the thoughts in the prompt, so that the reply contains only their end tag.
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
    """Returns the wait requested by a server in seconds, from a number or a date."""
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
