"""What does one argument take? A dataclass's fields as arguments: kinds, choices, defaults, and the values of texts.

Types are read as Transformers' `HfArgumentParser` (5.23) reads them, so that TRL's own dataclasses parse as they do
there; a test compares the two. A field's metadata may hold, beside `help`:

    positional  True: given without a name, as `eval.compare DIR DIR`; `rest`: it takes everything that follows
    metavar     how the value is shown in help
    choices     the words that are taken
    formerly    names it had before, to be named in an error
    check       a function of one value that raises ValueError, for what can be checked without heavy imports
"""

import ast
import dataclasses
import enum
import importlib
import importlib.util
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

TRUE = ("yes", "true", "t", "y", "1")
FALSE = ("no", "false", "f", "n", "0")
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
Check = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a command."""

    name: str
    kind: Any = None
    """int, float, bool, str or dict; None where any value passes as it is."""
    is_list: bool = False
    is_optional: bool = False
    choices: tuple[Any, ...] = ()
    required: bool = False
    default: Any = None
    help: str = ""
    metavar: str | None = None
    positional: bool | str = False
    formerly: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def flag(self) -> str:
        """The name as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def from_text(self, text: str) -> Any:
        """Returns the value that a word of the command line stands for.

        Raises:
            ValueError: that says what was expected.
        """
        if self.choices:
            known = {str(getattr(choice, "value", choice)): choice for choice in self.choices}
            if text not in known:
                raise ValueError(f"{text!r} is unknown; expected one of {', '.join(known)}")
            return known[text]
        if self.kind is bool:
            if text.lower() not in (*TRUE, *FALSE):
                raise ValueError(f"{text!r} is neither true nor false")
            return text.lower() in TRUE
        if self.kind is dict:
            return _json_mapping(text)
        if self.kind in (int, float):
            try:
                return self.kind(text)
            except ValueError:
                raise ValueError(f"{text!r} is not {EXPECTED[self.kind]}") from None
        return text

    def from_config(self, value: Any) -> Any:
        """Returns the value that a configuration file's entry stands for: one value of a list is a list of one.

        Raises:
            ValueError: that says what was expected.
        """
        if self.is_list:
            if value is None and self.is_optional:
                return None
            return [self._entry(entry) for entry in (value if isinstance(value, list | tuple) else [value])]
        return self._entry(value)

    def _entry(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.from_text(value)
        if value is None:
            if self.is_optional or self.kind in (None, str):
                return None
            raise ValueError(f"has no value; expected {EXPECTED[self.kind]}")
        if self.kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        fits = {int: int, float: int | float, bool: bool, dict: dict}.get(self.kind, object)
        if not isinstance(value, fits) or (self.kind in (int, float) and isinstance(value, bool)):
            raise ValueError(f"is {value!r}; expected {EXPECTED[self.kind]}")
        return value


@dataclass(frozen=True, kw_only=True)
class LibraryClass:
    """A dataclass of a library that takes seconds to import: its names are read from its source before that."""

    module: str
    name: str
    sources: tuple[tuple[str, str], ...]
    """File under site-packages and class in it, from the class itself down to its last base."""
    required: Mapping[str, str] = field(default_factory=dict)
    """Arguments without which the command cannot run, and what they are."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    load_with: Callable[[], type] | None = None
    """Makes the class, where it is not simply `module.name`."""
    without: tuple[str, ...] = ()
    """Arguments of the class that the command does not take."""
    also: tuple[type, ...] = ()
    """Dataclasses of ours whose arguments `load_with` adds; none of them is required or checked."""

    def load(self) -> type:
        """Imports the class."""
        if self.load_with is not None:
            return self.load_with()
        loaded: type = getattr(importlib.import_module(self.module), self.name)
        return loaded

    def arguments(self) -> list[Argument] | None:
        """Returns its arguments as its source tells them, or None where the source is not as expected."""
        try:
            bases = [[name] for _, name in self.sources[1:]] + [[]]
            read = zip(self.sources, bases, strict=True)
            found = [_read_source(_find_file(file), name, bases=tuple(base)) for (file, name), base in read][::-1]
        except (OSError, SyntaxError, LookupError):
            return None
        merged = {argument.name: argument for arguments in found for argument in arguments}
        for source in self.also:
            ours = (dataclasses.replace(argument, required=False, checks=()) for argument in arguments_of(source))
            merged.update({argument.name: argument for argument in ours})
        return [self.complete(argument) for name, argument in merged.items() if name not in self.without]

    def complete(self, argument: Argument) -> Argument:
        """Adds what this command asks of an argument."""
        checks = (self.checks[argument.name],) if argument.name in self.checks else ()
        required = argument.required or argument.name in self.required
        text = argument.help or self.required.get(argument.name, "")
        return dataclasses.replace(argument, required=required, checks=(*argument.checks, *checks), help=text)


def arguments_of(source: type) -> list[Argument]:
    """Returns the arguments that a dataclass declares."""
    hints = get_type_hints(source)
    return [_from_field(entry, hints[entry.name]) for entry in dataclasses.fields(source) if entry.init]


def argument_names(source: type | LibraryClass) -> list[str]:
    """Returns the names of the arguments of a dataclass; a library's is imported only where its source is unknown."""
    if isinstance(source, LibraryClass):
        known = source.arguments()
        return [argument.name for argument in (arguments_of(source.load()) if known is None else known)]
    return [argument.name for argument in arguments_of(source)]


def _from_field(entry: "dataclasses.Field[Any]", hint: Any) -> Argument:
    kind, is_list, choices, is_optional = _read_hint(hint, entry.name)
    required = entry.default is MISSING and entry.default_factory is MISSING
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    if required and hint is bool:
        required, default = False, False  # as HfArgumentParser has it
    check = entry.metadata.get("check")
    return Argument(
        name=entry.name,
        kind=kind,
        is_list=is_list,
        is_optional=is_optional,
        choices=choices or tuple(entry.metadata.get("choices", ())),
        required=required,
        default=None if required else default,
        help=entry.metadata.get("help", ""),
        metavar=entry.metadata.get("metavar"),
        positional=entry.metadata.get("positional", False),
        formerly=tuple(entry.metadata.get("formerly", ())),
        checks=(check,) if check else (),
    )


def _read_hint(hint: Any, name: str) -> tuple[Any, bool, tuple[Any, ...], bool]:
    """Returns the kind of a value, whether there are several, the choices, and whether None is one.

    Of a union the member that HfArgumentParser takes.
    """
    is_optional = False
    if get_origin(hint) in (Union, types.UnionType):
        members = get_args(hint)
        is_optional = type(None) in members
        others = [member for member in members if member is not type(None)]
        if len(others) > 1 and str not in others:
            raise TypeError(f"the type {hint} of {name} is not one that an argument can have")
        if not is_optional:
            hint = members[0] if members[1] is str else members[1]
        elif bool in members and len(others) > 1:
            return None, False, (), True
        else:
            hint = members[0] if members[1] is type(None) else members[1]
    if get_origin(hint) is Literal:
        return None, False, get_args(hint), is_optional
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return None, False, tuple(member.value for member in hint), is_optional
    if get_origin(hint) is list:
        (element,) = get_args(hint)
        if isinstance(element, type) and issubclass(element, enum.Enum):
            return None, True, tuple(element), is_optional
        kind, _, choices, _ = _read_hint(element, name)
        return kind, True, choices, is_optional
    if hint is list:
        return None, True, (), is_optional
    if hint is dict or get_origin(hint) is dict:
        return dict, False, (), is_optional
    return (hint if hint in (int, float, bool, str) else None), False, (), is_optional


def _json_mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a mapping; expected JSON, such as '{{\"name\": 1}}'")
    return value


def _find_file(file: str) -> Path:
    """Returns the path of an installed package's file, without importing the package.

    Raises:
        LookupError: where the package is not installed.
    """
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(package)
    return Path(spec.submodule_search_locations[0]) / rest


@cache
def _read_source(path: Path, name: str, *, bases: tuple[str, ...]) -> tuple[Argument, ...]:
    """Returns the annotated fields of a class, as its source writes them.

    Raises:
        LookupError: where the file has no such class, or one with other bases, whose fields are not known.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None or [ast.unparse(base) for base in found.bases] != list(bases):
        raise LookupError(name)
    return tuple(
        _from_annotation(node.target.id, ast.unparse(node.annotation), node.value)
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if "ClassVar" not in ast.unparse(node.annotation) and not _is_derived(node.value)
    )


def _is_derived(value: ast.expr | None) -> bool:
    """True for `field(init=False)`, which is no argument."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and not word.value.value for word in keywords
    )


def _from_annotation(name: str, annotation: str, value: ast.expr | None) -> Argument:
    """Returns an argument from the text of its type; a type that is not plain passes every value."""
    words = [word.strip() for word in annotation.split("|")]
    plain = {"int": int, "float": float, "bool": bool, "str": str}
    is_optional = "None" in words
    members = [word for word in words if word != "None"]
    kind = plain.get(members[0]) if len(members) == 1 else None
    is_list = any(word.startswith("list") for word in members)
    return Argument(
        name=name, kind=None if is_list else kind, is_list=is_list, is_optional=is_optional, required=value is None
    )


def check_each(values: Sequence[Any], check: Check) -> list[str]:
    """Returns what a check has against each of some values."""
    found = []
    for value in values:
        try:
            check(value)
        except ValueError as error:
            found.extend(str(error).splitlines())
    return found
