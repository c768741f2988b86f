"""How does a command start, how does it report a person's mistake, and how does it end?

Its arguments are read by `tracking/arguments.py`. A mistake found by this suite (`ValueError`) ends the command with
one line a mistake and exit status 2, a run that failed on its own terms (`RuntimeError`: a breach of freezing, a failed
job) with exit status 1, one that SIGTERM stopped and that saved itself with 75; anything raised by a library keeps its
traceback.

A command that ends in one of these ways does so within seconds, whatever its libraries still do. Before the interpreter
exits, it waits for all threads that are not daemons, calls what was registered with `atexit`, and takes all modules
down. vLLM (0.31) prepares a large image in a thread while its engine starts, which no signal ends; and taking it down
needs seconds of processor time, which are minutes on a busy machine. So threads get a limited time, registered
functions are called as usual, and the rest is left out.
"""

import atexit
import dis
import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tracking.arguments import (
    ArgumentsTaken,
    arguments_only,
    check_all,
    check_least,
    parse_arguments,
    program_name,
)
from tracking.command_line import did_you_mean, raise_mistakes, read_config, read_yaml

__all__ = [
    "ArgumentsTaken",
    "Preempted",
    "arguments_only",
    "check_all",
    "check_least",
    "command_module",
    "did_you_mean",
    "is_main_process",
    "parse_arguments",
    "program_name",
    "quiet_libraries",
    "raise_mistakes",
    "raised_by_us",
    "read_config",
    "read_yaml",
    "run_command",
    "stopped_by_sigterm",
]

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
EXIT_PREEMPTED = 75
"""`EX_TEMPFAIL` of sysexits.h: try again later."""
THREADS_S = 5.0
"""Time that other threads have to end when a command ends without success."""
MAIN_FIRST_S = 10.0
"""How long a process that fails leaves the word to the main one."""


class Preempted(SystemExit):
    """A run that received SIGTERM, saved its state and stopped; the same command continues it."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that child processes and files are cleaned up."""

    def stop(signal_number: int, frame: object) -> None:
        raise Preempted("stopped by SIGTERM")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def command_module(name: str) -> Any:
    """Returns the module of a command that has `main`: `merge.splice` is one, `analyze.swap` a folder that holds it."""
    found = importlib.util.find_spec(name)
    is_folder = found is not None and found.submodule_search_locations is not None
    return importlib.import_module(f"{name}.command" if is_folder else name)


def is_main_process() -> bool:
    """True in the one process of a distributed run that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a person's mistake becomes one line on standard error and exit status 2.

    In a program started with `python -m`, it ends the process itself if the command does not succeed.
    """
    caller = sys._getframe(1).f_globals
    is_program = caller["__name__"] == "__main__" and caller["__spec__"] is not None  # python -m
    quiet_libraries()
    try:
        main()
    except Exception as error:
        speaks = _may_speak()
        if not isinstance(error, ValueError | RuntimeError) or not raised_by_us(error):
            if is_program:
                sys.excepthook(type(error), error, error.__traceback__)
                _end_process(EXIT_FAILED)
            raise
        if speaks:
            place = "" if is_main_process() else f" in process {os.environ['RANK']}"
            print(f"error{place}: {error}", file=sys.stderr)
        status = EXIT_MISTAKE if isinstance(error, ValueError) else EXIT_FAILED
    except Preempted as stop:
        if is_main_process():
            print(f"{stop}; the same command continues from there", file=sys.stderr)
        if not is_program:
            raise
        status = EXIT_PREEMPTED
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
        status = EXIT_INTERRUPTED
    else:
        return
    if is_program:
        _end_process(status)
    raise SystemExit(status)


def _end_process(status: int) -> NoReturn:
    """Ends this process as the interpreter does, but for threads that run on and objects that nobody needs.

    The two private functions are what the interpreter itself calls, in Python 3.11 to 3.14.
    """
    ended = threading.Event()
    threading.Thread(target=lambda: ended.wait(THREADS_S) or _exit(status), daemon=True).start()
    with suppress(KeyboardInterrupt):  # whoever interrupts again does not want to wait
        threading._shutdown()  # type: ignore[attr-defined]
        ended.set()
        atexit._run_exitfuncs()
    _exit(status)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(status)


def _may_speak() -> bool:
    """True in the main process; another one waits, and speaks if it still lives then: it has failed alone.

    Launchers end all processes as soon as one has ended. So the others neither cut the main one short nor repeat it.
    """
    if is_main_process():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run that saves itself may still hold it
    time.sleep(MAIN_FIRST_S)
    return True


def raised_by_us(error: BaseException) -> bool:
    """True where a `raise` of this repository raised it, and not a library, or its compiled code called from here."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    raised_in = Path(code.co_filename).resolve()
    ours = raised_in.is_relative_to(REPOSITORY_ROOT) and "site-packages" not in raised_in.parts
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def quiet_libraries() -> None:
    """Silences the libraries' start-up chatter, which says nothing about the experiment; warnings of ours remain."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_ACCELERATOR_LOG_LEVEL", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
