"""How does a command read its arguments and report a person's mistake?

Arguments are dataclasses declared beside the code they configure, parsed by TRL's `TrlParser`: `--config file.yaml`,
flags override the file, an unknown key is an error that names the nearest known one. A mistake found by this suite
(`ValueError`) ends the command with one line and exit status 2, a run that failed on its own terms (`RuntimeError`: a
breach of freezing, a failed job) with exit status 1, one that SIGTERM stopped and that saved itself with 75; anything
raised by a library keeps its traceback.
"""

import argparse
import difflib
import dis
import importlib
import importlib.util
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_PREEMPTED = 75
"""`EX_TEMPFAIL` of sysexits.h: try again later."""
MAIN_FIRST_S = 10.0
"""How long a process that fails leaves the word to the main one."""


class Preempted(SystemExit):
    """A run that was told to stop, saved itself and stopped; the same command continues it."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ArgumentsTaken(Exception):  # noqa: N818 (no error)
    """Raised where a command was only asked whether it takes its arguments, and it does."""


_arguments_only: ContextVar[bool] = ContextVar("arguments_only", default=False)


@contextmanager
def arguments_only() -> Iterator[None]:
    """Lets commands of this process read their arguments and go no further."""
    token = _arguments_only.set(True)
    try:
        yield
    finally:
        _arguments_only.reset(token)


def command_module(name: str) -> Any:
    """Returns the module of a command that has `main`: `merge.splice` is one, `analyze.swap` a folder that holds it."""
    found = importlib.util.find_spec(name)
    is_folder = found is not None and found.submodule_search_locations is not None
    return importlib.import_module(f"{name}.command" if is_folder else name)


def program_name() -> str:
    """Returns how this command was started, for its help: `python -m analyze.swap`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def did_you_mean(found: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest valid word, or the empty string when none is near."""
    near = difflib.get_close_matches(found, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_main_process() -> bool:
    """True in the one process of a distributed run that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def parse_arguments(argv: Sequence[str] | None, *dataclasses: type, description: str | None) -> tuple[Any, ...]:
    """Parses flags and an optional `--config FILE` into one instance of each dataclass.

    Raises:
        ValueError: for an unknown or misspelt key, a missing or malformed configuration file, or a bad value.
        ArgumentsTaken: in place of returning them, within `arguments_only`.
    """
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

        def set_defaults_with_config(self, **config: Any) -> list[str]:
            """Reads `tasks: count` in a file as the flag `--tasks count` is read: a list of one."""
            lists = {action.dest for action in self._actions if action.nargs in ("+", "*")}
            remaining: list[str] = super().set_defaults_with_config(
                **{
                    key: [value] if key in lists and isinstance(value, str | int | float) else value
                    for key, value in config.items()
                }
            )
            return remaining

    arguments = list(sys.argv[1:] if argv is None else argv)
    for position, text in enumerate(arguments):
        if text.startswith("--config="):  # TrlParser reads the file only where it is a word of its own
            arguments[position : position + 1] = text.split("=", 1)
    parser = Parser(
        list(dataclasses),
        prog=program_name(),
        description=(description or "").split("\n")[0],
        usage="%(prog)s [--config FILE] [--NAME VALUE ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument_group("configuration").add_argument(
        "--config", help="a YAML file with values for any of these arguments", default=argparse.SUPPRESS
    )
    known = {action.dest: action for action in parser._actions if action.dest not in ("config", "help")}
    arguments = _gather_lists(arguments, {action.dest for action in known.values() if action.nargs in ("+", "*")})
    if "--config" in arguments:
        position = arguments.index("--config") + 1
        if position == len(arguments):
            raise ValueError("--config needs a file, for example --config configs/pocket/necessity.yaml")
        path = Path(arguments[position])
        for key, value in read_config(path, known).items():
            if key in known and known[key].type is int and known[key].nargs is None and isinstance(value, float | list):
                raise ValueError(f"{path}: {key} is {value!r}; expected a whole number")
    try:
        *parsed, remaining = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    except (TypeError, argparse.ArgumentError) as error:
        raise ValueError(str(error)) from error
    unknown = [text for text in remaining if text.startswith("--")] or remaining
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
        raise ValueError(f"unknown argument {unknown[0]!r}{did_you_mean(name, known)}")
    if _arguments_only.get():
        raise ArgumentsTaken
    return tuple(parsed)


def _gather_lists(arguments: list[str], lists: set[str]) -> list[str]:
    """Joins the values of a list's flag that is given several times: `--donor a=A --donor b=B`."""
    gathered: dict[str, list[str]] = {}
    rest: list[str] = []
    values = rest
    for text in arguments:
        if text.startswith("--"):
            flag, separator, value = text.partition("=")
            name = flag.lstrip("-").replace("-", "_")
            values = gathered.setdefault(name, []) if name in lists else rest
            if name in lists:
                values.extend([value] if separator else [])
                continue
        values.append(text)
    return [*rest, *(word for name, words in gathered.items() for word in (f"--{name}", *words))]


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Reads a configuration file of known keys.

    Raises:
        ValueError: where it is missing, no YAML mapping, or has an unknown key.
    """
    config = read_yaml(path)
    for key in config:
        if key not in known and key != "env":
            raise ValueError(f"{path}: unknown key {key!r}{did_you_mean(str(key), known)}")
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping, whatever its keys.

    Raises:
        ValueError: where the file is missing or holds something else.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found {type(config).__name__}")
    return config


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a person's mistake becomes one line on standard error and exit status 2."""
    quiet_libraries()
    try:
        main()
    except Exception as error:
        speaks = _may_speak()
        if not isinstance(error, ValueError | RuntimeError) or not raised_by_us(error):
            raise
        if speaks:
            place = "" if is_main_process() else f" in process {os.environ['RANK']}"
            print(f"error{place}: {error}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE if isinstance(error, ValueError) else EXIT_FAILED) from error
    except Preempted as stop:
        if is_main_process():
            print(f"{stop}; the same command continues from there", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise SystemExit(130) from None


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
