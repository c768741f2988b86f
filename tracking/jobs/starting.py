"""In which process does a job run? In a fork of a warm process if the results are the same, otherwise in a new one.

The warm process (`tracking/jobs/warm.py`) has imported the libraries, which saves each job about 7 s of CPU time. A job
is started as a new process (a cold start) in these cases:

- It is no command of the suite, or one that needs no torch (`LIGHT`).
- A launcher such as `accelerate launch` starts it: the launcher's own children would need the libraries.
- Its configuration sets environment variables or uses vLLM: libraries read variables when they are imported, and vLLM
  starts processes of its own.
- The machine has a GPU: a CUDA context does not survive a fork, and imports are a small part of a job on a GPU.
- No other job would share the imports, or the warm process has ended. Its output is in `warm_start.log`.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol

from tracking.command import read_yaml
from tracking.jobs.job import Job
from tracking.jobs.warm import MAX_REQUEST_BYTES, READY, end_with_parent

SUITE = ("analyze", "benchmarks", "eval", "models", "slurm", "train")
"""Packages whose commands import the libraries; those of `data_builders` and `merge` do without torch."""
GPU_DEVICES = ("nvidia[0-9]*", "kfd")
"""Device files of NVIDIA's and AMD's drivers."""
WARM_LOG = "warm_start.log"
ANSWER_WITHIN_S = 60.0
PR_SET_CHILD_SUBREAPER = 36


class Process(Protocol):
    """A job's process, a child of this one; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...


class ForkedProcess:
    """A process that another one forked for this process, its parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._file = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Returns the exit status, or minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            end = os.waitid(os.P_PIDFD, self._file, os.WEXITED | os.WNOHANG)
            if end is not None:
                self.returncode = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                os.close(self._file)
        return self.returncode

    def terminate(self) -> None:
        """Sends SIGTERM, unless the process has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # a signal handler may call this while `poll` is at work
                signal.pidfd_send_signal(self._file, signal.SIGTERM)


class WarmProcess:
    """The process that has imported the libraries."""

    def __init__(self, environment: Mapping[str, str], log_path: Path) -> None:
        self.socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(ANSWER_WITHIN_S)
        with its, log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tracking.jobs.warm", str(its.fileno())],
                pass_fds=[its.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=end_with_parent,  # noqa: PLW1509 (this process has one thread)
            )
        self.is_importing = True

    def is_ready(self) -> bool:
        """True if it takes jobs; False while it imports, and when it has ended."""
        if self.is_importing and select.select([self.socket], [], [], 0)[0]:
            self.is_importing = False
            if self._receive() != READY:
                self.end()
        return not (self.is_importing or self.has_ended)

    @property
    def has_ended(self) -> bool:
        return self.socket.fileno() < 0

    def fork(self, words: list[str], log: IO[bytes]) -> ForkedProcess | None:
        """Starts a module with arguments in a fork; returns None if the process cannot do it.

        While it forks, this process is a subreaper, so that it becomes the fork's parent.
        """
        request = json.dumps(words).encode()
        if len(request) > MAX_REQUEST_BYTES:
            return None
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self.socket, [request], [log.fileno()])
            answer = self._receive()
        except OSError:
            answer = b""
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
        if not answer:
            self.end()
            return None
        return ForkedProcess(int(answer))

    def _receive(self) -> bytes:
        """Returns the next answer; nothing if the process has ended or does not answer."""
        try:
            return self.socket.recv(64)
        except OSError:
            return b""

    def end(self) -> None:
        """Ends the process; its forks go on."""
        self.socket.close()
        self._process.kill()
        self._process.wait()


class Starter:
    """Starts jobs in new processes or as forks."""

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        environment: Mapping[str, str],
        log_dir: Path,
        warm_start: bool,
        say: Callable[[str], None],
    ) -> None:
        """Starts the warm process if at least two of the jobs can use it.

        Args:
            environment: of every job.
            log_dir: where the warm process writes what it prints.
            warm_start: False to start every job in a new process.
            say: prints a line for the user.
        """
        self._environment = environment
        self._log_path = log_dir / WARM_LOG
        self._say = say
        self._warm_jobs = {job.name for job in jobs if can_be_forked(job)} if warm_start and not has_gpu() else set()
        self._warm = WarmProcess(environment, self._log_path) if len(self._warm_jobs) > 1 else None

    def pending(self) -> list[int]:
        """Returns the file that becomes readable when the warm process has imported; none if it has, or has ended."""
        if self._warm is None or self._warm.is_ready() or self._warm.has_ended:
            return []
        return [self._warm.socket.fileno()]

    def is_ready(self, job: Job) -> bool:
        """False if the job is to be a fork of the warm process and that is still importing."""
        if self._warm is None or job.name not in self._warm_jobs:
            return True
        is_ready = self._warm.is_ready()
        if self._warm.has_ended:
            self._say(f"the warm process ended; every job imports its libraries itself (log: {self._log_path})")
            self._warm = None
        return is_ready or self._warm is None

    def start(self, job: Job, log: IO[bytes]) -> Process:
        """Starts a job that is ready; its output goes to the log."""
        if self._warm is not None and job.name in self._warm_jobs:
            forked = self._warm.fork(list(job.command[2:]), log)
            self._warm_jobs.remove(job.name)
            if not self._warm_jobs:
                self.close()
            if forked is not None:
                return forked
        return subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (this process has one thread)
        )

    def close(self) -> None:
        """Ends the warm process."""
        if self._warm is not None and not self._warm.has_ended:
            self._warm.end()
            self._warm = None


def can_be_forked(job: Job) -> bool:
    """True if a job's results are the same in a fork of the warm process, and if the imports matter to it."""
    if job.command[:2] != (sys.executable, "-m") or job.command[2].partition(".")[0] not in SUITE:
        return False
    configs = [word for flag, word in pairwise(job.command) if flag == "--config"]
    return not any(_starts_cold(Path(config)) for config in configs)


def _starts_cold(config: Path) -> bool:
    try:
        values = read_yaml(config)
    except ValueError:  # the job reports it
        return True
    return bool(values.get("env") or values.get("use_vllm") or values.get("engine") == "vllm")


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """True if the driver of a GPU is loaded."""
    return any(True for pattern in GPU_DEVICES for _ in devices.glob(pattern))
