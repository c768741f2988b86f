"""A hub on this machine: a web server that speaks as much of the hub's interface as huggingface_hub needs to fetch."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

KIND_PREFIXES = {"model": "", "dataset": "datasets/"}


@dataclass
class Hub:
    """Repositories as the hub holds them: files by commit, and the commit each branch stands for."""

    endpoint: str
    cache: Path
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    failing: bool = False
    """True where every answer is an error of the server's own."""
    breaks_at: str | None = None
    """A file whose connection ends half way, each time it is asked for."""
    holds_at: str | None = None
    """Part of a path whose answers wait until this is taken back."""
    claims: dict[str, int] = field(default_factory=dict)
    """Sizes that are not true, by file."""
    asked: list[str] = field(default_factory=list)
    """`METHOD /path` of every request."""

    def add(self, repo: str, source: Path | dict[str, bytes], *, kind: str = "model", branch: str = "main") -> str:
        """Puts a new commit on a branch and returns it."""
        if isinstance(source, Path):
            source = {
                str(path.relative_to(source)): path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()
            }
        name = KIND_PREFIXES[kind] + repo
        commit = digest(b"".join(path.encode() + data for path, data in source.items()))
        self.files[name, commit] = source
        self.branches[name, branch] = commit
        return commit

    def fetched(self) -> list[str]:
        """Returns the names of the files that were sent."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and body for a path, as the hub gives them."""

    def error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"

    if hub.failing:
        return error(501, "NotImplemented")  # none that huggingface_hub waits for to pass
    is_api = path.startswith("/api/")
    parts = path.removeprefix("/api").removeprefix("/").removeprefix("models/").split("/")
    length = 3 if parts[0] == "datasets" else 2
    name, rest = "/".join(parts[:length]), parts[length:]
    if not any(known == name for known, _ in hub.branches):
        return error(401, "RepoNotFound")
    revision = rest[1] if len(rest) > 1 else "main"
    commit = hub.branches.get((name, revision), revision)
    if (name, commit) not in hub.files:
        return error(404, "RevisionNotFound")
    files = hub.files[name, commit]
    if is_api and (not rest or rest[0] == "revision"):
        siblings = [{"rfilename": file} for file in files]
        return 200, {}, json.dumps({"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings}).encode()
    if is_api:
        assert rest[0] == "tree", path
        entries = [
            {
                "type": "file",
                "path": file,
                "size": hub.claims.get(file, len(data)),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            for file, data in files.items()
        ]
        return 200, {}, json.dumps(entries).encode()
    assert rest[0] == "resolve", path
    if name in hub.gated:
        return error(403, "GatedRepo")
    file = "/".join(rest[2:])
    if file not in files:
        return error(404, "EntryNotFound")
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{digest(files[file])}"'}, files[file]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and an empty cache beside it, both known to huggingface_hub in this process."""
    from huggingface_hub import constants

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            here.asked.append(f"{self.command} {path}")
            status, headers, body = answer(here, path)
            while here.holds_at is not None and here.holds_at in path and self.command == "GET":
                time.sleep(0.02)
            self.send_response(status)
            length = here.claims.get(path.rpartition("/")[2], len(body))
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if here.breaks_at is not None and path.endswith(here.breaks_at):
                body = body[: len(body) // 2]
                self.close_connection = True
            with contextlib.suppress(BrokenPipeError):  # a killed client
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Hub(endpoint=f"http://127.0.0.1:{server.server_port}", cache=tmp_path / "hub-cache")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield here
    server.shutdown()
    server.server_close()
    thread.join()
