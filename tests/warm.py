"""Commands of the suite as processes that begin with their libraries imported: forks of one warm parent.

A study starts dozens of processes, and each would spend seven seconds of processor time on the same imports. Here a
server imports the libraries once. Its folder holds a `python` that takes the interpreter's place: `python -m MODULE …`,
`python FILE …` and `python -c PROGRAM …` (if the program imports a library) hand their arguments, directory,
environment and open files to the server, which forks a child that runs them. Everything else, and everything where no
server answers, is run by the real interpreter.

The `python` in front stays until the child has ended: it passes signals on, ends with the child's status or signal, and
takes the child with it where it is killed. Libraries read their environment when they are imported, which is before the
child's is known; so the server has what the tests set (offline, one thread), and the number of threads is set anew.
"""

import atexit
import contextlib
import ctypes
import json
import os
import re
import runpy
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
LISTENS = b"listens\n"
COLD = ("eval.grading.worker", "tracking.jobs.warm")
"""Modules whose process must be the one that is started: they limit its memory, or fork children for its parent."""
HEAVY = re.compile(r"\b(?:import|from)\b[^\n]*\b(?:deepspeed|peft|peft_merge|torch|transformers)\b")
"""An import, in a program given as text, of a library or of a module that needs one."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LIBRARIES = (
    "pandas", "scipy.stats", "statsmodels.stats.multitest", "torch", "torchvision", "transformers", "datasets", "peft",
    "accelerate", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "trl.scripts.utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl", "transformers.generation.utils",
    "matplotlib.pyplot", "sklearn.linear_model", "jinja2",
)  # fmt: skip
STARTED_WITHIN_S = 300
PR_SET_PDEATHSIG = 1
FRONT_PARENT = "FRONT_PARENT"
"""Variable with the process that started the one in front: a child's own parent is the server."""
KILLED = int(signal.SIGKILL).to_bytes(8, "big")
"""The status of a child whose server was killed, and it with it."""


def start_server(folder: Path, *, lives_with: int) -> Path:
    """Starts a server, writes its `python` into a folder, and returns that; the server ends with a process."""
    shim = folder / "python"
    name = f"frankenstein-{os.getpid()}-{secrets.token_hex(8)}"
    real, here = sys.executable, Path(__file__).resolve()
    words = " ".join(f"'{word}'" for word in (real, "-IS", here, "--client", name, real))
    shim.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [real, str(here), "--server", name, str(shim), str(lives_with)],
            cwd=REPOSITORY_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline() == LISTENS, (folder / "log").read_text()
    return shim


def ask(name: str, real: str, words: list[str]) -> NoReturn:
    """Has the server run the words; this process becomes the real interpreter where that cannot be."""
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(STARTED_WITHIN_S)
    try:
        if not is_warm(words):
            raise OSError("for the real interpreter")
        server.connect("\0" + name)
    except OSError:
        os.execv(real, [real, *words])
    server.settimeout(None)
    request = json.dumps(
        {"words": words, "directory": str(Path.cwd()), "environment": dict(os.environ), "parent": os.getppid()}
    ).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda got, _: server.send(bytes([got])))
    status = int.from_bytes(server.recv(8) or KILLED, "big")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def is_warm(words: list[str]) -> bool:
    """True where the words run a module, a file or a program that needs the libraries."""
    if words[:1] == ["-c"]:
        return len(words) > 1 and "--multiprocessing-fork" not in words and bool(HEAVY.search(words[1]))
    name = next((word for word in words if word not in ("-m", "-u")), "-")
    return name not in COLD and (words[0] in ("-m", "-u") or name.endswith(".py"))


class Server:
    """Forks a child a request; `serve` returns in each child with what it is to run, and never in the server."""

    def __init__(self, name: str, lives_with: int) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("\0" + name)  # an abstract name: no file is left, and a folder's length does not matter
        self._listener.listen(64)
        self._owner = os.pidfd_open(lives_with)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, tuple[socket.socket, int]] = {}

    def serve(self) -> dict[str, Any]:
        self._selector.register(self._listener, selectors.EVENT_READ, "request")
        self._selector.register(self._owner, selectors.EVENT_READ, "end")
        while True:
            for key, _ in self._selector.select():
                if key.data == "end":
                    os._exit(0)  # the children end with this process
                elif key.data == "request":
                    if (request := self._start()) is not None:
                        return request
                elif key.data[0] == "ended":
                    self._report(key.data[1])
                elif key.data[1] in self._children:
                    self._pass_on(key.data[1])

    def _start(self) -> dict[str, Any] | None:
        client, _ = self._listener.accept()
        _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            client.close()
            return None
        size, files, _, _ = socket.recv_fds(client, 8, 3)
        if len(size) < 8 or len(files) < 3:
            client.close()
            return None
        content = bytearray()
        while len(content) < int.from_bytes(size, "big"):
            if not (part := client.recv(1 << 16)):
                break
            content += part
        pid = os.fork() if len(content) == int.from_bytes(size, "big") else None
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for place, file in enumerate(files):
                os.dup2(file, place)
            os.closerange(3, max(*files, client.fileno(), self._selector.fileno(), *self._open_files()) + 1)
            request: dict[str, Any] = json.loads(content)
            return request
        for file in files:
            os.close(file)
        if pid is None:
            client.close()
            return None
        watched = os.pidfd_open(pid)
        self._children[pid] = (client, watched)
        self._selector.register(watched, selectors.EVENT_READ, ("ended", pid))
        self._selector.register(client, selectors.EVENT_READ, ("said", pid))
        return None

    def _open_files(self) -> list[int]:
        own = [self._listener.fileno(), self._owner]
        return [*own, *(number for client, file in self._children.values() for number in (client.fileno(), file))]

    def _report(self, pid: int) -> None:
        client, watched = self._children.pop(pid)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(watched)
        os.close(watched)
        if client.fileno() in self._selector.get_map():
            self._selector.unregister(client)
            with contextlib.suppress(OSError):  # killed just now
                client.sendall(status.to_bytes(8, "big"))
        client.close()

    def _pass_on(self, pid: int) -> None:
        """Gives the child its client's signals, or the end where the client has been killed."""
        client, _ = self._children[pid]
        try:
            numbers = client.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or bytes([signal.SIGKILL]):
            os.kill(pid, number)
        if not numbers:
            self._selector.unregister(client)


def become(request: dict[str, Any], shim: str) -> Callable[[], object]:
    """Takes on a request's directory, environment and arguments, and returns what runs its module or file."""
    import random

    import numpy as np
    import torch

    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[FRONT_PARENT] = str(request["parent"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    random.seed()
    np.random.seed()
    words = [word for word in request["words"] if word != "-u"]
    by_name, by_text = words[0] == "-m", words[0] == "-c"
    program = words.pop(1) if by_text else ""
    name, *arguments = words[by_name:]
    sys.executable = shim  # so that its own children are warm too
    sys.argv = [name, *arguments]
    sys.path[0] = "" if by_text else request["directory"] if by_name else str(Path(name).resolve().parent)
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path and path not in sys.path]
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors=errors, buffering=1 if number == 2 else -1, closefd=False)  # noqa: SIM115
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    if by_text:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        return partial(exec, compile(program, "<string>", "exec"), main.__dict__)
    if by_name:
        return partial(runpy.run_module, name, run_name="__main__", alter_sys=True)
    return partial(runpy.run_path, name, run_name="__main__")


def remember_packages() -> None:
    """Keeps the metadata of installed packages once it is read: Accelerate parses it in every question about one."""
    import importlib.metadata

    read = importlib.metadata.Distribution.metadata.fget  # type: ignore[attr-defined]
    known: dict[str, Any] = {}

    def metadata(distribution: Any) -> Any:
        place = str(distribution._path)
        if place not in known:
            known[place] = read(distribution)
        return known[place]

    importlib.metadata.PathDistribution.metadata = property(metadata)  # type: ignore[misc, assignment]


def prepare() -> None:
    """Imports what commands import, but nothing of the suite itself: a request may come from another checkout."""
    import gc
    import importlib

    remember_packages()
    gc.disable()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would touch, and so copy, all of it
    gc.enable()


def main(words: list[str]) -> None:
    if words[0] == "--client":
        ask(words[1], words[2], words[3:])
    server = Server(words[1], int(words[3]))
    sys.stdout.buffer.write(LISTENS)  # who asks before the libraries are there waits
    sys.stdout.close()
    prepare()
    run = become(server.serve(), words[2])
    status = 0
    try:
        run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # waits for threads, as the interpreter does before it ends
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    os._exit(status)  # taking the libraries down would copy all their memory first


if __name__ == "__main__":
    main(sys.argv[1:])
