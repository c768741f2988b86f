"""Reads a study's or a cluster's settings from YAML into a dataclass, checking the types of its fields.

No flag overrides them, and text is not read as a number, so that a mistake in a type is found.
"""

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from tracking.command import did_you_mean, read_config

Settings = TypeVar("Settings")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """Reads one settings file.

    Raises:
        ValueError: for an unknown, missing or ill-typed key, in a line that names the file.
    """
    known: list[Any] = list(fields(kind))  # type: ignore[arg-type]
    names = [entry.name for entry in known]
    values = read_config(path, names)
    if "env" in values:  # accepted by TRL's parser in every file
        raise ValueError(f"{path}: unknown key 'env'{did_you_mean('env', names)}")
    hints = get_type_hints(kind)
    missing = [
        entry.name
        for entry in known
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in values
    ]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing; {help_of(kind, missing[0])}")
    typed = {name: _typed(hints[name], value, f"{path}: {name}") for name, value in values.items()}
    try:
        return kind(**typed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def help_of(kind: type, name: str) -> str:
    """Returns the help text of a field."""
    (entry,) = [entry for entry in fields(kind) if entry.name == name]
    return str(entry.metadata["help"])


def read_pairs(entries: list[str], *, name: str, example: str) -> dict[str, str]:
    """Parses KEY=VALUE entries; each key once."""
    pairs: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not (key and equals and value) or key in pairs:
            raise ValueError(f"{name} {entry!r}; expected KEY=VALUE, each key once, such as {example}")
        pairs[key] = value
    return pairs


def read_numbers(entries: list[str], *, name: str, expected: str, example: str) -> dict[str, float]:
    """Parses KEY=NUMBER entries; each key once, no number below 0."""
    pairs = read_pairs(entries, name=name, example=example)
    for key, value in pairs.items():
        if not NUMBER.fullmatch(value):
            raise ValueError(f"{name} {key}={value}; expected {expected}, such as {example}")
    return {key: float(value) for key, value in pairs.items()}


def check_one_line(values: Mapping[str, Any]) -> None:
    """Rejects text that would end a line of a script, or start an sbatch directive."""
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (text.splitlines() not in ([], [text]) or "\0" in text):
                raise ValueError(f"{name} {text!r} contains a line break; expected one line")
            if isinstance(text, str) and "#SBATCH" in text:
                raise ValueError(f"{name} {text!r} contains #SBATCH; name options of sbatch in their own settings")


def _typed(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is types.UnionType:
        return None if value is None else _typed(get_args(hint)[0], value, name)
    if get_origin(hint) is list:
        (element,) = get_args(hint)
        entries = value if isinstance(value, list) else [value]
        return [_typed(element, entry, name) for entry in entries]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint or value == "":
        raise ValueError(f"{name} is {value!r}; expected {'a text' if hint is str else hint.__name__}")
    return value
