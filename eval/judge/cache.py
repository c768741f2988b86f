"""What was asked before, and what was the reply? Kept by a hash of all that was asked, over runs and writers."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


def content_hash(*parts: str | bytes) -> str:
    """Returns a sha256 of several texts or bytes that no other cut of them shares."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class ReplyCache:
    """Replies by the hash of what was asked, in a file of JSON lines that threads and processes may append to."""

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
        """Reads the whole lines that were written since; one that a kill has torn is no reply."""
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
        """Keeps a reply; the line break comes first too, so that a torn line before it costs itself alone."""
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
