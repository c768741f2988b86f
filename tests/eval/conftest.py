"""Models behind endpoints: a web server in this process with configurable failures, and a real vLLM server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tracking.command import REPOSITORY_ROOT

SERVED_CONTEXT = 2048
SERVER_START_LIMIT_S = 400.0
STALL_S = 30.0
"""Longer than any test waits."""


@dataclass
class ChatServer:
    """What an endpoint replies, and what it was asked."""

    url: str
    reply: str = "correct"
    finish_reason: str = "stop"
    faults: list[str] = field(default_factory=list)
    """How the next requests go wrong, in order; after them, each is answered."""
    always: str | None = None
    """A fault of every request."""
    later: str | None = None
    """A fault of every request after those in `faults`."""
    unknown: tuple[str, ...] = ()
    """Settings that it refuses, one a request, by name."""
    repeats_question: bool = False
    """True where a refusal holds the whole question."""
    message: dict[str, Any] = field(default_factory=dict)
    """Further fields of its messages, or other values."""
    delay_s: float = 0.0
    """Before each answer."""
    most_at_once: int = 0
    """Questions that were ever under way together."""
    retry_after: str = "0"
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    echoes_key: bool = False
    """True where replies hold the key that was sent."""
    has_content: bool = True
    """False where messages have no content, not even null."""
    refusal: str = "no: {key}"
    """The body of a response that is not 200."""
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """An endpoint without faults until a test asks for some."""
    lock = threading.Lock()
    under_way: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            question = json.loads(body)
            server.asked.append(question)
            server.headers.append({name.title(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            fault = server.always or (server.faults.pop(0) if server.faults else server.later or "none")
            unknown = next((name for name in server.unknown if name in question), None)
            with lock:
                under_way.append(question)
                server.most_at_once = max(server.most_at_once, len(under_way))
            time.sleep(server.delay_s)
            with lock:
                under_way.pop()
            if unknown is not None:
                self.send(400, f"Unrecognized request argument supplied: {unknown}".encode())
            elif server.repeats_question and fault == "400":
                self.send(400, b"cannot answer " + body)
            else:
                faults[fault](self)

        def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def completion(self) -> bytes:
            key = self.headers.get("Authorization", "").removeprefix("Bearer ") if server.echoes_key else ""
            content = {"content": server.reply + key} if server.has_content else {}
            message = {"role": "assistant", **content, **server.message}
            return json.dumps({"choices": [{"message": message, "finish_reason": server.finish_reason}]}).encode()

        def trickle(self, at_once: bytes, slowly: bytes) -> None:
            self.wfile.write(at_once)
            for byte in slowly + b"x" * 1000:
                if server.released.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    def refusal(status: int, **headers: str) -> Any:
        def act(handler: Handler) -> None:
            words = server.refusal.replace("{key}", str(handler.headers.get("Authorization"))).encode()
            handler.send(status, words, **(headers or {"Retry_After": server.retry_after}))

        return act

    half = json.dumps({"choices": [{"message": {"content": "correct"}}]}).encode()[:30]
    faults: dict[str, Any] = {
        "none": lambda handler: handler.send(200, handler.completion()),
        "stall": lambda handler: server.released.wait(STALL_S),
        "never": lambda handler: server.released.wait(),
        "trickle": partial(Handler.trickle, at_once=b"", slowly=b"HTTP/1.1 200 OK\r\nX-Slow: "),
        "trickling body": partial(
            Handler.trickle, at_once=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", slowly=b"{"
        ),
        "429": refusal(429),
        "500": refusal(500),
        "503": refusal(503),
        "401": refusal(401),
        "400": refusal(400),
        "404": refusal(404),
        "redirect": refusal(302, Location="http://127.0.0.1:9/v1"),
        "garbage": lambda handler: handler.send(200, b"\x00<html>\xff"),
        "other JSON": lambda handler: handler.send(200, b'{"choices": {"0": "correct"}}'),
        "deep JSON": lambda handler: handler.send(200, b"[" * 100_000),
        "half a JSON": lambda handler: handler.send(200, half),
        "cut connection": lambda handler: handler.send(200, half, length=10_000),
        "closed connection": lambda handler: handler.connection.close(),
        "null": lambda handler: handler.send(200, b'{"choices": [{"message": {"content": null}}]}'),
        "huge": lambda handler: handler.send(200, b" " * 5_000_000),
    }

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is part of these tests."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    server = ChatServer(url=f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # openai 3.57 waits 0.5 s before it repeats
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.released.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="session")
def served(trained_pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pocket model, with room for a judge's prompt and a penalty in its generation_config.json."""
    directory = tmp_path_factory.mktemp("served") / "checkpoint"
    shutil.copytree(trained_pocket, directory)
    generation = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(generation | {"repetition_penalty": 1.5}))
    config = json.loads((directory / "config.json").read_text())
    (config.get("text_config") or config)["max_position_embeddings"] = SERVED_CONTEXT
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def launched_server(
    served: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple["subprocess.Popen[bytes]", int, Path]]:
    """A vLLM server that starts while other tests run: its process, port and log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    words = ["--model", str(served), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
             "--max-model-len", str(SERVED_CONTEXT), "--host", "127.0.0.1", "--port", str(port),
             "--limit-mm-per-prompt", '{"image":1,"video":0}']  # fmt: skip
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            cwd=REPOSITORY_ROOT, stdout=file, stderr=file, start_new_session=True, env=os.environ | quiet,
        )  # fmt: skip
    yield process, port, log
    os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture(scope="session")
def vllm_server(launched_server: tuple["subprocess.Popen[bytes]", int, Path]) -> str:
    """The address of a vLLM server that is ready, up to and with its version."""
    process, port, log = launched_server
    deadline = time.monotonic() + SERVER_START_LIMIT_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return f"http://127.0.0.1:{port}/v1"
        except OSError:
            time.sleep(0.3)
