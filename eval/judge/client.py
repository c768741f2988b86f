"""How does every attempt at a request end in time? The `openai` client, with an HTTP client that bounds attempts.

HTTP clients bound single reads, so a server that sends single bytes slowly could hold a request open without limit.
Here the whole attempt runs in a thread, which is abandoned after the time limit. To the `openai` client an attempt that
took too long looks like any other timeout, and a response that is no chat completion like any other broken one, so it
repeats both.

Imported only when a request is sent: `openai` takes a second to import.
"""

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
from openai import DefaultHttpxClient, OpenAI

from eval.judge.reply import UnusableReplyError, read_completion

MAX_REPLY_BYTES = 4 * 2**20
OK = 200


class _Limited(httpx2.SyncByteStream):
    """The body of a response, up to `MAX_REPLY_BYTES`."""

    def __init__(self, body: httpx2.SyncByteStream) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._body:
            size += len(part)
            if size > MAX_REPLY_BYTES:
                raise UnusableReplyError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
            yield part

    def close(self) -> None:
        self._body.close()


class BoundedClient(DefaultHttpxClient):
    """An HTTP client whose attempts end within a time limit, and which follows no redirect: one could take the key."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(follow_redirects=False, timeout=limit_s)
        self._limit_s = limit_s

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        outcome: list[httpx2.Response | BaseException] = []

        def work() -> None:
            try:
                outcome.append(self._send_whole(request, options))
            except BaseException as error:  # raised again below, in the waiting thread
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._limit_s)
        if not outcome:
            raise httpx2.ReadTimeout(f"no whole reply within {self._limit_s:g} s", request=request)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _send_whole(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        response = super().send(request, **{**options, "stream": True})
        try:
            assert isinstance(response.stream, httpx2.SyncByteStream), type(response.stream)
            response.stream = _Limited(response.stream)
            body = response.read()
        finally:
            response.close()
        if response.status_code == OK and read_completion(body) is None:
            raise httpx2.DecodingError("a reply that is no chat completion", request=request)
        return response


def open_client(url: str, *, timeout_s: float, num_attempts: int) -> OpenAI:
    """Returns a client of an endpoint. It holds no key: each request must send its own `Authorization` header."""
    return OpenAI(
        api_key=lambda: "",
        base_url=url,
        timeout=timeout_s,
        max_retries=num_attempts - 1,
        http_client=BoundedClient(timeout_s),
    )
