"""How does a command read its arguments? Into dataclasses declared beside the code they configure.

`--config FILE` holds the same names as the flags, and flags override it. Dashes and underscores in names are the same.
All mistakes are reported together, before heavy imports: arguments of a library's dataclass are read from
its source first (`LibraryClass`), and only a command line without mistakes imports the library.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.argument_help import Group, print_help
from tracking.command_line import Parsed, raise_mistakes, read_words, spelling, start_of_rest
from tracking.fields import Argument, LibraryClass, arguments_of, check_each


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


def program_name() -> str:
    """Returns how this command was started, for its help: `python -m analyze.swap`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def check_all(*checks: Callable[[], object]) -> None:
    """Calls every check and raises one error with what all of them refuse, a line each.

    Raises:
        ValueError: with the mistakes.
    """
    mistakes: list[str] = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            mistakes += str(error).splitlines()
    raise_mistakes(mistakes)


def check_least(arguments: Any, **least: float) -> None:
    """Refuses numbers of a dataclass below their least, a line each; None is no number.

    Raises:
        ValueError: with the mistakes.
    """
    values = {name: getattr(arguments, name) for name in least}
    raise_mistakes(
        [
            f"{name} is {value}; it must be at least {least[name]}"
            for name, value in values.items()
            if value is not None and value < least[name]
        ]
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One of a command's dataclasses with its arguments, None where a library's source could not be read."""

    kind: type | LibraryClass
    arguments: list[Argument] | None
    title: str


def parse_arguments(
    argv: Sequence[str] | None,
    *classes: type | LibraryClass,
    description: str | None,
    subcommand: str = "",
    check_inputs: bool = False,
) -> tuple[Any, ...]:
    """Parses flags and an optional `--config FILE` into one instance of each dataclass.

    Args:
        argv: the words of the command line; this process's own by default.
        classes: the dataclasses, those of libraries as `LibraryClass`.
        description: the module's docstring; shown by --help, with its examples.
        subcommand: the word that chose the dataclasses, for the help.
        check_inputs: also refuse files, folders and checkpoints that do not exist: calls the `check` of each field that
            has one, and `check_inputs()` of each dataclass that has it.

    Raises:
        ValueError: with a line for each mistake: an unknown or misspelt name, a missing or malformed configuration
            file, a bad value, a missing argument.
        ArgumentsTaken: in place of returning them, within `arguments_only`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if _asks_for_help(words, classes):
        groups = [
            Group(title=source.title, arguments=source.arguments or (), of_library=isinstance(kind, LibraryClass))
            for kind, source in zip(classes, map(_loaded, classes), strict=True)
        ]
        print_help(groups, description, program=f"{program_name()} {subcommand}".strip())
        raise SystemExit(0)
    checks = check_inputs and not _arguments_only.get()
    light = [_unloaded(kind) for kind in classes]
    instances = _fill(words, light, checks=checks)
    if any(isinstance(kind, LibraryClass) for kind in classes):
        instances = _fill(words, [_loaded(kind) for kind in classes], checks=False)
    if _arguments_only.get():
        raise ArgumentsTaken
    return tuple(instances)


def _unloaded(kind: type | LibraryClass) -> _Source:
    if isinstance(kind, LibraryClass):
        return _Source(kind=kind, arguments=kind.arguments(), title=kind.name)
    return _Source(kind=kind, arguments=arguments_of(kind), title=_title(kind))


def _loaded(kind: type | LibraryClass) -> _Source:
    if not isinstance(kind, LibraryClass):
        return _unloaded(kind)
    loaded = kind.load()
    return _Source(
        kind=loaded,
        arguments=[kind.complete(argument) for argument in arguments_of(loaded)],
        title=f"{kind.module}.{kind.name}",
    )


def _title(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).split("\n")[0].rstrip(".")


def _fill(words: Sequence[str], sources: Sequence[_Source], *, checks: bool) -> list[Any]:
    """Returns an instance of each dataclass, None for those that are not loaded yet.

    Raises:
        ValueError: with every mistake that is found.
    """
    known = {argument.name: argument for source in sources for argument in source.arguments or ()}
    is_closed = all(source.arguments is not None for source in sources)
    parsed = read_words(words, known, is_closed=is_closed)
    given = {*parsed.values, *parsed.spoilt, *parsed.meant}
    parsed.mistakes += [
        f"{spelling(argument, words)} is required{f': {argument.help}' if argument.help else ''}"
        for argument in known.values()
        if argument.required and argument.name not in given and parsed.is_whole
    ]
    if checks:
        for name, value in parsed.values.items():
            for check in known[name].checks:
                entries = value if isinstance(value, list) else [] if value is None else [value]
                against = check_each(entries, check)
                parsed.mistakes += [f"{spelling(known[name], words)}: {text}" for text in against]
                parsed.failed.update([name] if against else [])
    instances = [_make(source, parsed, checks=checks) for source in sources]
    mistakes = list(dict.fromkeys(parsed.mistakes))
    if len(mistakes) > 1:
        mistakes = [f"{len(mistakes)} mistakes in the arguments:", *(f"  {mistake}" for mistake in mistakes)]
    raise_mistakes(mistakes)
    os.environ.update(parsed.environment)
    return instances


def _make(source: _Source, parsed: Parsed, *, checks: bool) -> Any:
    """Returns an instance, or None where it cannot be made (yet); what it refuses is added to the mistakes."""
    names = [argument.name for argument in source.arguments or ()]
    missing = any(argument.required and argument.name not in parsed.values for argument in source.arguments or ())
    if isinstance(source.kind, LibraryClass) or missing or parsed.spoilt & set(names):
        return None
    try:
        instance = source.kind(**{name: parsed.values[name] for name in names if name in parsed.values})
        if checks and not parsed.failed & set(names) and hasattr(instance, "check_inputs"):
            instance.check_inputs()
    except (ValueError, TypeError) as error:
        parsed.mistakes += str(error).splitlines()
        return None
    return instance


def _asks_for_help(words: Sequence[str], classes: Sequence[type | LibraryClass]) -> bool:
    """True for `--help` or `-h`, but not among words that are handed on to another command."""
    own = list(words)
    sources = [kind for kind in classes if not isinstance(kind, LibraryClass)]
    if any(argument.positional == "rest" for kind in sources for argument in arguments_of(kind)):
        own = own[: start_of_rest(own)]
    return any(word in ("-h", "--help") for word in own)
