"""Cache of replies, keyed by a hash of the full request; persists over runs and allows concurrent writers."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


def content_hash(*parts: str | bytes) -> str:
    """Returns a sha256 of several texts or bytes; a different split of the same bytes gives a different hash."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class ReplyCache:
    """Replies keyed by the hash of the request, in a JSON Lines file to which threads and processes may append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, str] = {}
        self._num_bytes_read = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self._lock:
            if key not in self._replies:
                self._read_on()
            return self._replies.get(key)

    def _read_on(self) -> None:
        """Reads the complete lines written since the last call; a line truncated by a kill is ignored."""
        if not self.path.is_file() or self.path.stat().st_size == self._num_bytes_read:
            return
        with self.path.open("rb") as file:
            file.seek(self._num_bytes_read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._num_bytes_read += len(whole)
        for line in whole.split(b"\n"):
            try:
                row = json.loads(line)
                self._replies[row["key"]] = row["reply"]
            except (ValueError, KeyError, TypeError):
                continue

    def put(self, key: str, reply: str, **facts: Any) -> None:
        """Appends a reply, with a line break also before it, so that a truncated previous line does not affect it."""
        line = json.dumps({"key": key, "reply": reply, **facts}, ensure_ascii=True)
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replies[key] = reply
            with self.path.open("ab", buffering=0) as file:
                file.write(f"{line}\n".encode() if _ends_whole(self.path) else f"\n{line}\n".encode())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
