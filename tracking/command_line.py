"""How does a command line become values? Words and an optional `--config FILE`, every mistake collected."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking.fields import FALSE, TRUE, Argument

QUOTES = ("'", '"')


@dataclass(kw_only=True)
class Parsed:
    """What a pass over the command line and the configuration file has found."""

    values: dict[str, Any] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)
    """Arguments whose value was refused."""
    failed: set[str] = field(default_factory=set)
    """Arguments whose value is of the right type, and failed a check."""
    meant: set[str] = field(default_factory=set)
    """Arguments whose name was misspelt."""
    environment: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True
    """False where a file could not be read: what it would have given is not known."""


def read_words(words: Sequence[str], known: Mapping[str, Argument], *, is_closed: bool) -> Parsed:
    """Reads the configuration file, then the words, which override it."""
    parsed = Parsed()
    positional = [argument for argument in known.values() if argument.positional]
    takes_rest = any(argument.positional == "rest" for argument in positional)
    start = start_of_rest(words) if takes_rest else len(words)
    words, free = list(words[:start]), list(words[start:])
    if "config" not in known:
        for path in _take_config(words, parsed):
            _read_file(path, known, parsed, is_closed=is_closed)
    given: dict[str, list[str]] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            free.append(word)
            continue
        typed, equals, joined = word.partition("=")
        name = typed[2:].replace("-", "_")
        following = 0
        while position + following < len(words) and not _is_flag(words[position + following]):
            following += 1
        values = [joined] if equals else words[position : position + following]
        argument = known.get(name)
        if argument is None and (negated := known.get(name.removeprefix("no_"))) and negated.kind is bool:
            parsed.values[negated.name] = False
            given.pop(negated.name, None)
            continue
        if argument is None:
            if is_closed:
                _refuse(f"unknown argument {typed!r}", typed, known, parsed)
            position += 0 if equals else following  # its values are no mistakes of their own
            continue
        taken = _num_taken(argument, values, has_positional=bool(positional) and not equals)
        position += 0 if equals else taken
        if argument.is_list:
            given.setdefault(name, []).extend(values[:taken])
        else:
            given[name] = values[:taken]
        if not taken and argument.kind is not bool:
            parsed.mistakes.append(f"{typed} needs {'at least one value' if argument.is_list else 'a value'}")
            parsed.spoilt.add(name)
    for name, texts in _place(free, positional, parsed).items():
        given.setdefault(name, []).extend(texts)
    for name, texts in given.items():
        _convert(known[name], texts, words, parsed)
    return parsed


def start_of_rest(words: Sequence[str]) -> int:
    """Returns where another command begins: at the first word that is neither a flag nor the value of one."""
    position = 0
    while position < len(words) and _is_flag(words[position]):
        position += 1 if "=" in words[position] else 2
    return min(position, len(words))


def _is_flag(word: str) -> bool:
    return word.startswith("--") and word[2:3].isalpha()


def _num_taken(argument: Argument, values: Sequence[str], *, has_positional: bool) -> int:
    """Returns how many of the words after a flag are its values."""
    if argument.is_list:
        return len(values)
    if argument.kind is bool and values and has_positional and values[0].lower() not in (*TRUE, *FALSE):
        return 0
    return min(1, len(values))


def _place(free: Sequence[str], positional: Sequence[Argument], parsed: Parsed) -> dict[str, list[str]]:
    """Returns which words without a name belong to which argument; a list takes all that remain."""
    placed: dict[str, list[str]] = {}
    words = list(free)
    for argument in positional:
        if words:
            placed[argument.name] = words if argument.is_list else [words[0]]
            words = [] if argument.is_list else words[1:]
    parsed.mistakes += [f"unknown argument {word!r}" for word in words]
    return placed


def _convert(argument: Argument, texts: Sequence[str], words: Sequence[str], parsed: Parsed) -> None:
    """Sets an argument to what its words stand for."""
    values = []
    parsed.values.pop(argument.name, None)
    for text in texts:
        try:
            values.append(argument.from_text(text))
        except ValueError as error:
            parsed.mistakes.append(f"{spelling(argument, words)}: {error}")
            parsed.spoilt.add(argument.name)
    if argument.name not in parsed.spoilt:
        parsed.values[argument.name] = values if argument.is_list else values[0] if values else True


def _take_config(words: list[str], parsed: Parsed) -> list[Path]:
    """Takes `--config FILE` out of the words."""
    paths: list[Path] = []
    position = 0
    while position < len(words):
        flag, equals, joined = words[position].partition("=")
        if flag != "--config":
            position += 1
            continue
        following = [] if equals else words[position + 1 : position + 2]
        del words[position : position + 1 + len(following)]
        named = joined if equals else next(iter(following), "")
        if not named or _is_flag(named):
            parsed.mistakes.append("--config needs a file, for example --config configs/pocket/necessity.yaml")
            words[position:position] = following
        else:
            paths.append(Path(named))
    if len(paths) > 1:
        parsed.mistakes.append(f"--config is given {len(paths)} times; expected one file")
    return paths[:1]


def _read_file(path: Path, known: Mapping[str, Argument], parsed: Parsed, *, is_closed: bool) -> None:
    try:
        config = read_yaml(path)
    except ValueError as error:
        parsed.mistakes.append(str(error))
        parsed.is_whole = False
        return
    environment = config.pop("env", {})
    if not isinstance(environment, dict):
        parsed.mistakes.append(f"{path}: env is {environment!r}; expected a mapping of environment variables")
        environment = {}
    parsed.environment.update({str(key): str(value) for key, value in environment.items()})
    for key, value in config.items():
        if key not in known:
            if is_closed:
                _refuse(f"{path}: unknown key {key!r}", str(key), known, parsed)
            continue
        try:
            parsed.values[key] = known[key].from_config(value)
        except ValueError as error:
            parsed.mistakes.append(f"{path}: {key}{':' if str(error).startswith(QUOTES) else ''} {error}")
            parsed.spoilt.add(key)


def _refuse(what: str, typed: str, known: Mapping[str, Argument], parsed: Parsed) -> None:
    """Adds an unknown name to the mistakes, with the one that was meant, which is then not reported as missing."""
    dashes = "--" if typed.startswith("--") else ""
    name = typed.removeprefix("--").replace("-", "_")
    renamed = next((argument.name for argument in known.values() if name in argument.formerly), None)
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    meant = renamed or next(iter(near), None)
    if meant is not None:
        parsed.meant.add(meant)
        spelt = dashes + (meant if "_" in typed or not dashes else meant.replace("_", "-"))
        what += f"; its name is {spelt!r} now" if renamed else f"; did you mean {spelt!r}?"
    parsed.mistakes.append(what)


def spelling(argument: Argument, words: Sequence[str]) -> str:
    """Returns an argument's flag: with underscores where the person writes other flags so, or where it has just one."""
    spelt = [word.partition("=")[0] for word in words if _is_flag(word)]
    underscores = any("_" in word for word in spelt) and not any("-" in word[2:] for word in spelt)
    return f"--{argument.name}" if underscores else argument.flag


def did_you_mean(found: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest valid word, or the empty string when none is near."""
    near = difflib.get_close_matches(found, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def raise_mistakes(mistakes: Sequence[str]) -> None:
    """Raises one error that tells all mistakes, a line each; does nothing where there are none.

    Raises:
        ValueError: with the mistakes.
    """
    if mistakes:
        raise ValueError("\n".join(mistakes))


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Reads a configuration file of known keys.

    Raises:
        ValueError: where it is missing, no YAML mapping, or has unknown keys, a line each.
    """
    known = list(known)
    config = read_yaml(path)
    raise_mistakes(
        [
            f"{path}: unknown key {key!r}{did_you_mean(str(key), known)}"
            for key in config
            if key not in known and key != "env"
        ]
    )
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
