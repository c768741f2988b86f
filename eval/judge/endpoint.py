"""Requests one chat completion from an OpenAI-compatible endpoint, in bounded time.

The requests are those of the `openai` package. It repeats an attempt that may succeed later (no connection, a timeout,
408, 409, 429, 5xx, an invalid response), after 0.5, 1, 2, … 8 seconds, or as the server asks (`Retry-After`, up to two
minutes; if it asks for more, the attempt is not repeated). An attempt ends after `timeout_s` whatever the server does
(`client.py`).

There are three kinds of failure. The endpoint fails (no connection, 5xx, a timeout, an invalid response, no such
model): the question is unanswered, and after many failures in a row the endpoint is not used again in this run. It
refuses the question (400, 413, 422, for example too long), or the reply is unusable (truncated at its limit or in its
thoughts, empty): this is a result for that question only.

Every setting that affects a reply is sent (`SETTINGS`), since servers have their own defaults: vLLM's uses the
repetition penalty of the checkpoint's `generation_config.json`. If an endpoint refuses one of `OPTIONAL` by name, this
question and later ones are sent without it; `Endpoint.settings` lists what is sent in the end.

The key is read from the environment for each request, from the named variable only. It is never stored, and it is
removed from the server's replies and refusals; redirects, which would send it elsewhere, are not followed. Errors state
the status, and the server's message only where it refuses a question.
"""

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eval.judge.reply import (
    EndpointError,
    RefusedError,
    UnansweredError,
    UnusableReplyError,
    read_completion,
    refusal_reason,
    usable_text,
)

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

MAX_FAILURES = 5
"""Failures in a row, per concurrent question, after which the endpoint is considered unavailable."""
REFUSED_STATUS = frozenset((400, 413, 422))
"""Statuses that concern a single question; others concern the server, the model or the key."""
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
CHECK_ATTEMPTS = 2
KEY_TAKEN_OUT = "[key]"
RETRIES_HEADER = "x-stainless-retry-count"
"""Header in which the `openai` client (3.57) counts the repetitions of a request."""

Messages = list[dict[str, Any]]


class _BadRequestError(Exception):
    """A refusal with the server's message, in which the names of settings are searched."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(status)
        self.status, self.words = status, words


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
    num_at_once: int = 1
    """Number of concurrent questions."""
    failures: int = field(default=0, init=False)
    """Number of failures in a row."""
    given_up: str = field(default="", init=False)
    """Why it is no longer used; empty while it is."""
    _last_failure: str = field(default="", init=False, repr=False)
    _left_out: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _opened: "OpenAI | None" = field(default=None, init=False, repr=False, compare=False)
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

    def check(self, messages: Messages, *, max_tokens: int, option: str) -> str:
        """Sends one test question, in the same way as all others, before long work begins.

        Args:
            messages: a small question of the same kind.
            max_tokens: as for all questions, since an endpoint may refuse a value beyond its model's context.
            option: the argument that named the endpoint.

        Returns:
            Why the reply is unusable; empty if it is usable.

        Raises:
            ValueError: if it does not answer, or refuses the question.
        """
        try:
            self._negotiated(messages, max_tokens, min(CHECK_ATTEMPTS, self.num_attempts))
        except UnusableReplyError as error:
            return str(error)  # the endpoint works
        except RefusedError as error:
            raise ValueError(
                f"{option}: {self.place} refuses the first question for model {self.model!r}: {error}; correct what it "
                "names"
            ) from None
        except EndpointError as error:
            raise ValueError(
                f"{option}: {self.place} does not answer for model {self.model!r}: {error}; start it, or correct the "
                "address or the model's name"
            ) from None
        return ""

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
            reply = self._negotiated(messages, max_tokens, self.num_attempts)
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

    def _negotiated(self, messages: Messages, max_tokens: int, num_attempts: int) -> str:
        """Sends all settings, and retries without those that the endpoint refuses by name.

        They are omitted from later questions only if that helped: a server that echoes the whole request in its refusal
        names all of them.
        """
        left_out = self._left_out
        while True:
            settings = {name: value for name, value in SETTINGS.items() if name not in left_out}
            try:
                body = self._post(messages, max_tokens, settings, num_attempts)
            except _BadRequestError as refusal:
                named = {name for name in OPTIONAL if name in settings and name in refusal.words}
                if not named:
                    reason = refusal_reason(self._without_key(refusal.words))
                    raise RefusedError(f"status {refusal.status}{f': {reason}' if reason else ''}") from None
                left_out |= named
                continue
            self._left_out = left_out
            completion = read_completion(body)
            assert completion is not None, "the client repeats other responses, and then fails"
            return self._without_key(usable_text(completion))

    def _post(self, messages: Messages, max_tokens: int, settings: dict[str, float], num_attempts: int) -> bytes:
        """Returns the body of a response that is a chat completion."""
        import httpx2
        from openai import APIConnectionError, APIStatusError, APITimeoutError, Omit

        key = _read_key(self.key_variable)
        client = self._client().with_options(max_retries=num_attempts - 1)
        try:
            response = client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]  # the client's types name each kind of message
                max_tokens=max_tokens,
                extra_body=settings,
                extra_headers={"Authorization": f"Bearer {key}" if key else Omit()},
            )
        except APIStatusError as error:
            raise self._failure(error) from None
        except APITimeoutError as error:
            times = _attempts(error.request)
            raise UnansweredError(f"no whole reply within {self.timeout_s:g} s{times}") from None
        except APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, httpx2.DecodingError):
                reason = "a reply that is no chat completion"
            else:
                reason = f"no connection ({refusal_reason(self._without_key(str(cause))) or type(cause).__name__})"
            raise UnansweredError(f"{reason}{_attempts(error.request)}") from None
        return response.http_response.content

    def _client(self) -> "OpenAI":
        with self._lock:
            if self._opened is None:
                from eval.judge.client import open_client

                self._opened = open_client(self.url, timeout_s=self.timeout_s, num_attempts=self.num_attempts)
            return self._opened

    def _failure(self, error: "APIStatusError") -> Exception:
        status = error.status_code
        if status in REFUSED_STATUS:
            return _BadRequestError(status, error.response.text)
        hint = {
            401: f"; is the key in {self.key_variable} right?",
            403: f"; may the key in {self.key_variable} use this model?",
            404: "; is there such a model, and does the address end in its version, such as /v1?",
        }.get(status, "; it redirects, which is not followed; name the final address" if status < 400 else "")
        return UnansweredError(f"status {status}{hint}{_attempts(error.request)}")

    def _without_key(self, text: str) -> str:
        key = _read_key(self.key_variable)
        return text.replace(key, KEY_TAKEN_OUT) if key else text


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


def _attempts(request: Any) -> str:
    """Returns the number of attempts after a request's last one, if there were several."""
    num_attempts = 1 + int(request.headers.get(RETRIES_HEADER, 0))
    return f" ({num_attempts} attempts)" if num_attempts > 1 else ""
