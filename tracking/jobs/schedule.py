"""How do many commands run on one machine? In parallel as the cores allow, each in its own process, resumable.

A job is a command with an output directory. A finished job is not run again, unless it collects the results of other
jobs and one of those runs again. Jobs end with their parent process, so a killed study leaves no process that writes.
After a failure no new jobs are started; with `keep_going`, jobs that do not depend on the failed one continue.

The cores are divided evenly among the jobs that run in parallel, up to `OMP_NUM_THREADS` threads a job if that variable
is set: on a machine that others use too, threads that wait for each other take the time of all.

If more jobs are ready than cores are free, those that head the longest chain of further jobs start first. A study's
base model and cold start are such a chain, in which every job waits for the one before.
"""

import heapq
import json
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tracking.command import EXIT_PREEMPTED, Preempted
from tracking.jobs.job import Job, settled
from tracking.jobs.starting import Process, Starter
from tracking.progress import PROGRESS_FILE, StatusLine, format_duration

POLL_S = 0.25
MIN_FRACTION = 0.1
"""Share of a job's steps after which its own rate is used instead of the expected duration."""
NUM_LOG_LINES = 15
"""Number of lines shown of a failed job's log."""


@dataclass
class _Running:
    job: Job
    process: Process
    ended: int
    """A file that becomes readable when the process ends."""
    started: float

    def fraction(self) -> float:
        """Returns the share of steps done, 0 if unknown."""
        try:
            state = json.loads((self.job.output_dir / PROGRESS_FILE).read_text())
            return float(state["step"]) / float(state["num_steps"])
        except (OSError, ValueError):
            return 0.0


def threads_per_job(num_parallel: int) -> int:
    """Returns the number of threads of each job: its share of the cores, at most `OMP_NUM_THREADS` if that is set."""
    share = max(1, len(os.sched_getaffinity(0)) // num_parallel)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


class Schedule:
    """Runs jobs in dependency order, several in parallel; the cores are divided evenly."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        num_parallel: int,
        log_dir: Path,
        expected_s: dict[str, float],
        keep_going: bool = False,
        warm_start: bool = True,
    ) -> None:
        names = [job.name for job in jobs]
        assert len(set(names)) == len(names), f"job names repeat: {names}"
        self._jobs = list(jobs)
        self._num_parallel = num_parallel
        self._log_dir = log_dir
        self._expected_s = dict(expected_s)
        self._durations: dict[str, list[float]] = {}
        self._seconds: dict[str, float] = {}
        self._line = StatusLine()
        self._running: list[_Running] = []
        self._stopped = False
        self._keep_going = keep_going
        self._warm_start = warm_start
        self._failed: list[Job] = []
        self._left_out: list[Job] = []

    def run(self) -> dict[str, float]:
        """Runs every unfinished job and returns each one's duration in seconds.

        Raises:
            RuntimeError: if a job fails, with the end of its log; running jobs end first, and with `keep_going` all
                jobs that do not depend on it are run.
            Preempted: on SIGTERM, which is forwarded to the running jobs; they save their state and end first.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        previous = signal.signal(signal.SIGTERM, self._stop)
        finished = settled(self._jobs)
        waiting = [job for job in self._jobs if job.name not in finished]
        threads = str(threads_per_job(self._num_parallel))
        try:
            starter = Starter(
                waiting,
                environment={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                log_dir=self._log_dir,
                warm_start=self._warm_start,
                say=self._line.say,
            )
            with closing(starter):
                return self._run(waiting, finished, starter)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _stop(self, signal_number: int, frame: object) -> None:
        self._stopped = True
        for entry in self._running:
            entry.process.terminate()

    def _run(self, waiting: list[Job], finished: set[str], starter: Starter) -> dict[str, float]:
        running = self._running
        failed = self._failed
        if finished:
            self._line.say(f"{len(finished)} of {len(self._jobs)} steps are done already")
        try:
            while running or (waiting and self._goes_on):
                if self._goes_on:
                    self._leave_out(waiting)
                    self._start_ready(waiting, running, finished, starter)
                select.select([*(entry.ended for entry in running), *starter.pending()], [], [], POLL_S)
                for entry in [entry for entry in running if entry.process.poll() is not None]:
                    running.remove(entry)
                    os.close(entry.ended)
                    if entry.process.returncode == 0:
                        self._finish(entry, finished)
                    elif self._stopped or entry.process.returncode == EXIT_PREEMPTED:
                        self._stopped = True
                    else:
                        failed.append(entry.job)
                        self._line.say(f"{entry.job.name} failed; log: {self._log_path(entry.job)}")
                self._show(waiting, running, finished)
        finally:
            for entry in running:
                entry.process.terminate()
        if failed:
            left_out = [f"not run, since they depend on a failed job: {', '.join(job.name for job in self._left_out)}"]
            raise RuntimeError(
                "\n".join([*(self._describe_failure(job) for job in failed), *(left_out if self._left_out else [])])
            )
        if len(finished) < len(self._jobs):
            raise Preempted(f"stopped by SIGTERM with {len(finished)} of {len(self._jobs)} steps done")
        return dict(self._seconds)

    @property
    def _goes_on(self) -> bool:
        return not self._stopped and (self._keep_going or not self._failed)

    def _leave_out(self, waiting: list[Job]) -> None:
        """Removes the direct and indirect dependents of a failed job."""
        lost = {job.name for job in (*self._failed, *self._left_out)}
        while found := [job for job in waiting if lost & set(job.needs)]:
            for job in found:
                waiting.remove(job)
                self._left_out.append(job)
                lost.add(job.name)

    def _start_ready(self, waiting: list[Job], running: list[_Running], finished: set[str], starter: Starter) -> None:
        ended = finished | {job.name for job in (*self._failed, *self._left_out)}
        ready = [job for job in waiting if not set(job.needs) - finished and not set(job.after) - ended]
        if not ready or len(running) >= self._num_parallel:
            return
        chains = self._chains(waiting)
        for job in sorted(ready, key=lambda job: -chains[job.name]):
            if len(running) < self._num_parallel and starter.is_ready(job):
                waiting.remove(job)
                running.append(self._start(job, starter))
                if self._stopped:  # meanwhile
                    running[-1].process.terminate()

    def _chains(self, waiting: Sequence[Job]) -> dict[str, float]:
        """Returns for each job the seconds that it and the longest chain of jobs after it take."""
        chains: dict[str, float] = {}

        def length(job: Job) -> float:
            if job.name not in chains:
                followers = [other for other in waiting if job.name in (*other.needs, *other.after)]
                chains[job.name] = self._estimate(job.kind) + max(map(length, followers), default=0.0)
            return chains[job.name]

        for job in waiting:
            length(job)
        return chains

    def _start(self, job: Job, starter: Starter) -> _Running:
        with self._log_path(job).open("ab") as log:
            log.write(f"$ {job.shell}\n".encode())
            log.flush()
            process = starter.start(job, log)
        return _Running(job, process, os.pidfd_open(process.pid), time.monotonic())

    def _finish(self, entry: _Running, finished: set[str]) -> None:
        duration = time.monotonic() - entry.started
        self._durations.setdefault(entry.job.kind, []).append(duration)
        self._seconds[entry.job.name] = round(duration, 1)
        finished.add(entry.job.name)
        self._line.say(f"[{len(finished)}/{len(self._jobs)}] {entry.job.name}: {format_duration(duration)}")

    def _show(self, waiting: list[Job], running: list[_Running], finished: set[str]) -> None:
        if not running:
            return
        parts = [f"{entry.job.name} {entry.fraction():.0%}".removesuffix(" 0%") for entry in running]
        left = format_duration(self._remaining_s(waiting, running, finished))
        self._line.show(f"[{len(finished)}/{len(self._jobs)}] {', '.join(parts)}; about {left} left")

    def _remaining_s(self, waiting: Sequence[Job], running: Sequence[_Running], finished: set[str]) -> float:
        """Simulates the rest of the schedule with measured or expected durations."""
        now = time.monotonic()
        ends = [(self._rest_s(entry, now), entry.job.name) for entry in running]
        done, queue, clock_s = finished | {job.name for job in self._failed}, list(waiting), 0.0
        while ends:
            heapq.heapify(ends)
            clock_s, name = heapq.heappop(ends)
            done.add(name)
            for job in [job for job in queue if not {*job.needs, *job.after} - done]:
                if len(ends) < self._num_parallel:
                    queue.remove(job)
                    ends.append((clock_s + self._estimate(job.kind), job.name))
        return clock_s

    def _rest_s(self, entry: _Running, now: float) -> float:
        elapsed_s, fraction = now - entry.started, entry.fraction()
        if fraction > MIN_FRACTION:
            return elapsed_s * (1 - fraction) / fraction
        return max(0.0, self._estimate(entry.job.kind) - elapsed_s)

    def _estimate(self, kind: str) -> float:
        measured = self._durations.get(kind)
        return sum(measured) / len(measured) if measured else self._expected_s.get(kind, 0.0)

    def _log_path(self, job: Job) -> Path:
        return self._log_dir / f"{job.name}.log"

    def _describe_failure(self, job: Job) -> str:
        said = self._log_path(job).read_text(errors="replace")
        lines = said[max(0, said.rfind(f"$ {job.shell}\n")) :].splitlines()  # only this attempt's
        tail = "\n".join(f"    {line}" for line in lines[-NUM_LOG_LINES:])
        return f"{job.name} failed; the end of {self._log_path(job)}:\n{tail}"
