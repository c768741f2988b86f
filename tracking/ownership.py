"""Which process is writing a directory that several machines share? A claim file with a heartbeat.

`flock` is released with its holder, but on many shared filesystems it works only within one machine. So a run directory
also has a claim: host, process and Slurm job, created atomically (`O_EXCL`) and touched every `BEAT_S` seconds. A claim
is abandoned if its holder was on this machine (whose lock this process then has), was an earlier attempt of the same
Slurm job, is a job that Slurm no longer reports as running, or has not touched the claim for `STALE_S` seconds. Then it
is replaced, and read again after `SETTLE_S`: if two processes replace it at once, one of them finds the other's claim.
A process whose own claim has been replaced (it was suspended for too long) exits immediately without writing.

Ages are computed from timestamps of the same filesystem, so clock differences between machines do not matter.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CLAIM_FILE = ".owner"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux's boot id; unlike host names, it is unique."""
BEAT_S = 15.0
STALE_S = 120.0
SETTLE_S = 2.0
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
EXIT_DISPOSSESSED = 1


class OwnedError(Exception):
    """Another process is writing the directory."""


@contextmanager
def ownership(directory: Path) -> Iterator[None]:
    """Claims a directory against processes on other machines; those on this machine are excluded by the lock.

    Raises:
        OwnedError: if another process holds it; the message describes the holder.
    """
    path = directory / CLAIM_FILE
    own = {
        "host": socket.gethostname(),
        "boot": BOOT_ID.read_text(encoding="ascii").strip(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "token": os.urandom(8).hex(),
    }
    _claim(path, own)
    ended = threading.Event()
    threading.Thread(target=_keep, args=(path, own, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _read(path) == own:
            path.unlink(missing_ok=True)


def _claim(path: Path, own: dict[str, Any]) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(own))
        return
    except FileExistsError:
        pass
    holder = _read(path)
    is_here = holder is not None and holder["boot"] == own["boot"]
    is_ours = holder is not None and own["job"] is not None and holder["job"] == own["job"]
    age_s = _age_s(path)
    if not (is_here or is_ours or age_s > STALE_S or _has_ended(holder)):
        raise OwnedError(f"{_describe(holder)}, which showed itself {age_s:.0f} s ago")
    partial = path.with_name(f"{CLAIM_FILE}-{own['token']}")
    partial.write_text(json.dumps(own), encoding="utf-8")
    partial.replace(path)
    if not is_here:
        time.sleep(SETTLE_S)
    if _read(path) != own:
        raise OwnedError(_describe(_read(path)))


def _read(path: Path) -> dict[str, Any] | None:
    """Returns a claim; None if there is none, or it is incomplete."""
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return claim if isinstance(claim, dict) and {"host", "boot", "pid", "job"} <= claim.keys() else None


def _age_s(path: Path) -> float:
    """Returns the time since a claim was touched, by its filesystem's clock."""
    probe = path.with_name(f"{CLAIM_FILE}-{os.urandom(8).hex()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink()


def _has_ended(holder: dict[str, Any] | None) -> bool:
    """True if Slurm reports that the holder's job is not running."""
    if holder is None or holder["job"] is None or shutil.which("squeue") is None:
        return False
    told = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={holder['job']}"], capture_output=True, text=True, check=False
    )
    if told.returncode != 0:
        return "Invalid job id" in told.stderr
    return not set(told.stdout.split()) & set(RUNNING)


def _describe(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    job = f", Slurm job {holder['job']}" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']}{job}"


def _keep(path: Path, own: dict[str, Any], ended: threading.Event) -> None:
    """Touches the claim periodically; exits the process if it has been replaced."""
    while not ended.wait(BEAT_S):
        claim = _read(path)
        if claim is not None and claim != own and not ended.is_set():
            print(f"error: {path.parent} was taken over by {_describe(claim)}", file=sys.stderr, flush=True)
            os._exit(EXIT_DISPOSSESSED)
        try:
            os.utime(path)
        except OSError:  # removed, or the filesystem is temporarily unavailable; checked at the next beat
            continue
