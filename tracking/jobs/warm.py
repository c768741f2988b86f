"""How do jobs start without importing the libraries again? As forks of one process that has imported them.

Importing torch, Transformers and TRL takes 7 s of CPU time, a fork 0.2 s, and a study starts dozens of jobs. So this
process imports them once. The scheduler (`tracking/jobs/starting.py`) starts it with one end of a socket pair:

    python -m tracking.jobs.warm SOCKET

It sends `READY`, and then answers each request, a command and a log file, with the id of a fork that runs the command.
The fork's parent is the scheduler, not this process: it is forked twice, the process in between ends at once, and the
scheduler is then the nearest "subreaper" (prctl(2)). So a job ends, fails and is signalled as an ordinary child of the
scheduler. It also outlives this process.

A fork has only the thread that called fork(2). So this process ends if the libraries have started threads that a fork
would miss. It imports libraries only: a job imports the suite itself, in the version that is there when it starts. One
difference to an ordinary start remains: all jobs have the same hash seed, unless PYTHONHASHSEED sets it anyway.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tracking.command import REPOSITORY_ROOT, quiet_libraries

READY = b"ready"
MAX_REQUEST_BYTES = 1 << 17
"""Limit of a request, below the default limit of a socket's message on Linux (212,992 bytes)."""
LIBRARIES = (
    "accelerate", "datasets", "jinja2", "matplotlib.pyplot", "pandas", "peft", "scipy.stats", "sklearn.linear_model",
    "statsmodels.stats.multitest", "torch", "torchvision", "transformers", "transformers.generation.utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl", "trl.scripts.utils", "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
)  # fmt: skip
"""What training, evaluations and probes import. A job imports what is missing here itself."""
FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
"""Threads without which a fork works: jemalloc (5.3, in pyarrow 26) takes its locks before a fork, and frees memory in
the calling thread afterwards (`background_thread_postfork_child`)."""
PR_SET_PDEATHSIG = 1
ORPHANED_S = 0.001
"""Interval at which a fork looks whether the scheduler has become its parent."""


def end_with_parent() -> None:
    """Makes Linux send this process SIGTERM when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def import_libraries() -> None:
    """Imports the libraries, silenced as in a command.

    Raises:
        RuntimeError: if one of them has started a thread.
    """
    quiet_libraries()
    gc.disable()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would touch, and so copy, all objects
    gc.enable()
    sys.stdout.flush()  # what is left in its buffer would be written again by every fork
    _fork_once()  # OpenBLAS ends its threads before a fork, and starts them again when they are needed
    threads = [path / "comm" for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    names = {path.read_text(encoding="utf-8").strip() for path in threads}
    if names - FORK_SAFE_THREADS:
        raise RuntimeError(f"the libraries have started threads ({', '.join(sorted(names))}), which no fork would have")


def _fork_once() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def serve(control: socket.socket) -> list[str] | None:
    """Forks a job for each request.

    Returns:
        In each job its command, a module and its arguments; None in this process when the scheduler has closed the
        socket.
    """
    scheduler = os.getppid()
    while True:
        request, files, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1)
        if not request:
            return None
        job = _fork_for(scheduler)
        if job == 0:
            for number in (1, 2):
                os.dup2(files[0], number)
            os.close(files[0])
            control.close()
            words: list[str] = json.loads(request)
            return words
        os.close(files[0])
        control.send(str(job).encode())


def _fork_for(scheduler: int) -> int:
    """Forks a process whose parent is the scheduler; returns its id, and 0 in the process itself."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        between = os.getpid()
        if job := os.fork():
            os.write(writing, job.to_bytes(8, "big"))
            os._exit(0)
        os.close(reading)
        os.close(writing)
        while os.getppid() == between:
            time.sleep(ORPHANED_S)
        end_with_parent()  # not earlier: the process in between ends too
        if os.getppid() != scheduler:
            os._exit(1)  # it was killed in the meantime
        return 0
    os.close(writing)
    job = int.from_bytes(os.read(reading, 8), "big")
    os.close(reading)
    os.waitpid(between, 0)  # from now on the scheduler is the job's parent
    return job


def run_job(words: list[str]) -> NoReturn:
    """Runs a module as `python -m` does, and ends this process as the interpreter does."""
    import numpy as np
    import torch

    for name, module in list(sys.modules.items()):
        if name != "__main__" and _is_ours(module):
            del sys.modules[name]
    np.random.seed()  # each job begins with random numbers of its own; Python's own generator is seeded by a fork
    torch.default_generator.seed()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(words)
    status = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does (Python 3.11 to 3.14), before this:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status & 0xFF)  # taking the modules down would first copy all their memory


def _is_ours(module: object) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    path = Path(file)
    return path.is_relative_to(REPOSITORY_ROOT) and "site-packages" not in path.parts


def main() -> None:
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process without a message
    control = socket.socket(fileno=int(sys.argv[1]))
    import_libraries()
    words = None
    with suppress(BrokenPipeError, ConnectionResetError):  # the scheduler has ended
        control.send(READY)
        words = serve(control)
    if words is not None:
        run_job(words)


if __name__ == "__main__":
    main()
