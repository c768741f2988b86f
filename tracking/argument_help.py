"""What does `--help` show? The module's docstring, this suite's arguments, then a library's; required ones first."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

from tracking.fields import Argument

EPILOG = """Dashes and underscores in names are the same. A configuration file holds the same names, without --.
Exit status: 0 done; 1 the run itself failed; 2 wrong arguments or input; 75 stopped by SIGTERM, the same command
continues."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The arguments of one dataclass under their heading."""

    title: str
    arguments: Sequence[Argument]
    of_library: bool


def print_help(groups: Sequence[Group], description: str | None, *, program: str) -> None:
    """Prints what a command does and takes: its docstring, this suite's arguments, then a library's."""
    everything = [argument for group in groups for argument in group.arguments]
    free = [f"{argument.metavar or argument.name.upper()}{' ...' * argument.is_list}" for argument in everything
            if argument.positional]  # fmt: skip
    has_config = all(argument.name != "config" for argument in everything)
    parser = argparse.ArgumentParser(
        prog=program,
        description=cleandoc(description or ""),
        usage=" ".join(["%(prog)s", *free, *(["[--config FILE]"] if has_config else []), "[--NAME VALUE ...]"]),
        epilog=EPILOG,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = parser.add_argument_group("help and configuration")
    shown.add_argument("--help", "-h", action="store_true", help="show this message and exit")
    if has_config:
        shown.add_argument("--config", metavar="FILE", help="a YAML file with values for any of these arguments")
    for group in sorted(groups, key=lambda group: group.of_library):
        listed = parser.add_argument_group(group.title)
        for argument in sorted(group.arguments, key=lambda argument: not argument.required):
            _add_to_help(listed, argument)
    parser.print_help()


def _add_to_help(group: Any, argument: Argument) -> None:
    kinds = {int: "N", float: "X", bool: "true|false"}
    metavar = argument.metavar or kinds.get(argument.kind) or ("|".join(map(str, argument.choices)) or "VALUE")
    text = f"{argument.help}{_default_note(argument)}".strip()
    name = (argument.metavar or argument.name) if argument.positional else argument.flag
    options: dict[str, Any] = {} if argument.positional else {"metavar": metavar}
    if argument.is_list:
        options["nargs"] = "+"
    group.add_argument(name, help=text, **options)


def _default_note(argument: Argument) -> str:
    """Returns what is said of a missing value: that it is required, or its default where that has a meaning."""
    if argument.required:
        return " (required)"
    default = argument.default
    if default is None or default == "" or default == [] or (isinstance(default, bool) and not default):
        return ""
    if isinstance(default, bool):
        default = "true"
    if isinstance(default, list):
        default = " ".join(map(str, default))
    return f" (default: {getattr(default, 'value', default)})".replace("%", "%%")
