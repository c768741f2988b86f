"""Does the suite work on one GPU, and what does it cost? All measurements in one command, in about ten minutes.

    python -m benchmarks.gpu --output-dir outputs/gpu                  # one GPU of 80 GB
    python -m benchmarks.gpu --output-dir outputs/gpu --rehearse       # the same on the CPU, tiny: does it run here?

Each step runs in a process of its own and leaves `gpu_STEP.json` in the output folder, written anew with every figure:
a stop keeps what was measured, and the same command goes on with the steps that are not done at this commit. A step
that does not fit in what is left of the minutes is skipped; one that fails leaves its traceback, and the next goes on.
Exit status 1 where a step failed or was stopped, 2 where the machine is not fit for it.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.environment import (
    ROOM,
    ROOM_TO_REHEARSE,
    check_machine,
    check_modules,
    check_writable,
    child_environment,
    read_facts,
)
from benchmarks.gpu.records import (
    DONE,
    FAILED,
    RUNNING,
    SKIPPED,
    STOPPED,
    read_record,
    record_path,
    write_record,
)
from benchmarks.gpu.schedule import Step, allowance, choose_steps, format_steps
from tracking.command import EXIT_FAILED, REPOSITORY_ROOT, run_command
from tracking.run import git_state

NUM_LOG_LINES = 60
"""Of a failed step, from its end: its traceback, and what it said before."""
EXIT_TERMINATED = 143


def run_step(
    step: Step,
    path: Path,
    *,
    work_dir: Path,
    allowed_s: float,
    rehearse: bool,
    facts: Mapping[str, Any],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Runs one step to its end, or to the end of its time, and returns what stands in its file."""
    write_record(path, {**facts, "status": RUNNING, "limit_s": round(allowed_s, 1), "date": _now()})
    log = work_dir / f"{step.name}.log"
    folder = work_dir / "shared"
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.worker",
        step.name,
        "--record",
        str(path),
        "--work-dir",
        str(folder),
    ]
    begin = time.monotonic()
    status, reason = STOPPED, "interrupted"
    with log.open("w") as file:
        process = subprocess.Popen(
            command + ["--rehearse"] * rehearse, cwd=REPOSITORY_ROOT, env=dict(environment), stdout=file, stderr=file
        )
        try:
            returncode = process.wait(timeout=allowed_s)
            status, reason = (FAILED, f"exit status {returncode}") if returncode else (DONE, "")
        except subprocess.TimeoutExpired:
            reason = f"its {allowed_s:.0f} s were over"
        finally:
            end_with_children(process)
            record = read_record(path) or {}
            record |= {"status": status, "seconds": round(time.monotonic() - begin, 1)}
            if reason:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                record |= {"reason": reason, "traceback": lines[-NUM_LOG_LINES:]}
            write_record(path, record)
    return record


def end_with_children(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it started, and waits for it."""
    import psutil

    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        for child in (process, *started):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_done(record: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> bool:
    """True where a step's file holds what the same source tree has measured in the same way."""
    git = facts["git"]
    known = git["commit"] is not None and not git["dirty"]
    same = record is not None and all(record.get(name) == facts[name] for name in ("git", "rehearsal"))
    return known and same and record is not None and record["status"] == DONE


def run_steps(arguments: argparse.Namespace, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Runs the steps in their order as long as time is left, and returns their records."""
    begin = time.monotonic()
    check_modules(steps)
    for folder in filter(None, (arguments.output_dir, arguments.work_dir)):
        check_writable(folder)
    environment = child_environment(rehearse=arguments.rehearse)
    machine = read_facts(environment)
    git = git_state() if arguments.commit is None else {"commit": arguments.commit, "dirty": None}
    records = []
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-", dir=arguments.work_dir) as name:
        work_dir = Path(name)
        room = ROOM_TO_REHEARSE if arguments.rehearse else ROOM
        for warning in check_machine(machine, room, work_dir=work_dir, rehearse=arguments.rehearse):
            print(f"note: {warning}", flush=True)
        for step in steps:
            path = record_path(arguments.output_dir, step.name)
            facts = {
                "step": step.name,
                "question": step.question,
                "command": f"python -m benchmarks.gpu --steps {step.name}{' --rehearse' * arguments.rehearse}",
                "rehearsal": arguments.rehearse,
                "git": git,
                "hardware": machine,
                "expected_s": step.expected_s,
            }
            before = read_record(path)
            if before is not None and is_done(before, facts) and not arguments.overwrite:
                records.append(before)
                print(f"{step.name}: done before, kept", flush=True)
                continue
            left_s = 60 * arguments.minutes - (time.monotonic() - begin)
            allowed_s = allowance(step, left_s=left_s, limited=not arguments.rehearse)
            if allowed_s is None:
                reason = f"{max(left_s, 0):.0f} s are left, it is expected to take {step.expected_s:.0f}"
                record: dict[str, Any] = {**facts, "status": SKIPPED, "reason": reason, "date": _now(), "seconds": 0.0}
                write_record(path, record)
            else:
                print(f"{step.name}: {step.question}", flush=True)
                record = run_step(
                    step, path, work_dir=work_dir, allowed_s=allowed_s, rehearse=arguments.rehearse, facts=facts,
                    environment=environment,
                )  # fmt: skip
            records.append(record)
            print(format_record(record), flush=True)
    return records


def format_record(record: Mapping[str, Any]) -> str:
    """Returns how a step went, in a line, and where it failed the end of what it said."""
    reason = f": {record['reason']}" if record.get("reason") else ""
    lines = [f"{record['step']}: {record['status']} after {record['seconds']:.1f} s{reason}"]
    if record["status"] == FAILED:
        lines += [f"  {line}" for line in record["traceback"][-3:]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=(__doc__ or "").split("\n")[0],
        epilog=format_steps(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="where the files gpu_STEP.json are written")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="time limit for all steps together, in minutes (default: 10)"
    )
    parser.add_argument("--steps", nargs="+", default=[], metavar="NAME", help="run only these steps")
    parser.add_argument(
        "--rehearse", action="store_true", help="run all steps on the CPU with tiny shapes, to test that they work"
    )
    parser.add_argument(
        "--work-dir", type=Path, help="folder with 40 GiB of free space for checkpoints; emptied at the end"
    )
    parser.add_argument("--commit", help="commit of this source tree, if it is a copy without its git repository")
    parser.add_argument("--overwrite", action="store_true", help="measure finished steps again")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        raise ValueError(f"--minutes is {arguments.minutes}; expected more than 0")
    steps = choose_steps(arguments.steps)
    signal.signal(signal.SIGTERM, _terminate)
    records = run_steps(arguments, steps)
    print("  ".join(f"{record['step']} {record['status']}" for record in records))
    if any(record["status"] in (FAILED, STOPPED) for record in records):
        raise SystemExit(EXIT_FAILED)


def _terminate(_: int, __: FrameType | None) -> None:
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    run_command(main)
