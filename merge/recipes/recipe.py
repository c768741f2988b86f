"""Which donor owns which part of the model? The recipe of a splice, read from YAML or from a pattern.

    partition: thirds               # or paper, or instead of it   cuts: [8, 20]
    donors: {in: FOLDER-OR-HUB-ID, rl: FOLDER-OR-HUB-ID}        # checkpoints, or PEFT adapters
    blocks: {early: in, mid: rl, late: {start: in, end: rl, alpha: 0.5}}
    rest: {vision: in, projector: in, embed: in, norm: in, head: in}
    files: in                       # config, tokenizer, processor, chat template; by default the first donor's

A donor that is an adapter stands for its base with the adapter merged in, in fp32 and rounded once.
The first donor determines the layout: names on disk, shards, order. An owner is a donor, or arithmetic on donors:
`start + alpha · (end − start)`, or, with `onto`, `onto + alpha · (end − start)`.

Known limits: no checkpoint is opened here; `plan.py` checks the expressions against the model.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.adapters.opening import check_model
from models.blocks import ALL_REGIONS, BLOCKS, PARTITION_ARGUMENT, REGIONS
from tracking.command import did_you_mean, read_yaml

KEYS = ("donors", "partition", "cuts", "blocks", "rest", "files")
REST_ARGUMENT = {"help": "source of the regions: REGION=NAME for each region, or one donor's NAME for all of them"}
FILES_ARGUMENT = {"help": "donor whose configuration, tokenizer and processor are copied; the first donor by default"}
OWN_PARTITION_ARGUMENT = {
    **PARTITION_ARGUMENT,
    "help": "where early, mid and late are cut: thirds (the default), or paper (10/9/9 of 28 layers)",
}
"""Metadata of the fields with which commands describe a splice instead of a recipe's file."""

_DONOR_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Arithmetic between donors: `onto + alpha · (end − start)`."""

    start: str
    end: str
    alpha: float
    """Any finite number; values in [0, 1] interpolate, others extrapolate."""
    onto: str | None = None
    """The donor that the change is added to; None means `start`, which gives linear interpolation."""

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha!r}; expected a finite number, such as 0.5")
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start!r}; expected two different donors to blend")

    @property
    def donors(self) -> tuple[str, ...]:
        """The donors it reads: the one added to, then the start and end of the change."""
        return tuple(dict.fromkeys((self.onto or self.start, self.start, self.end)))

    def __str__(self) -> str:
        return f"{self.onto or self.start} + {self.alpha:g}·({self.end} − {self.start})"


Owner = str | Blend
"""A donor's name, or arithmetic between donors."""


def donors_of(owner: Owner) -> tuple[str, ...]:
    """Returns the names of the donors that an owner reads."""
    return owner.donors if isinstance(owner, Blend) else (owner,)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The owner of each part of a splice."""

    donors: dict[str, str]
    """Name -> folder or hub id; the first determines the layout on disk."""
    blocks: dict[str, Owner]
    """Block expression of decoder layers -> owner."""
    rest: dict[str, Owner]
    """Expression of a region -> owner."""
    partition: str = "thirds"
    """`thirds` or `paper`."""
    cuts: tuple[int, int] | None = None
    """Two layer numbers instead of a named partition."""
    files: str | None = None
    """The donor whose other files (config, tokenizer, …) are copied; None for the first."""

    def __post_init__(self) -> None:
        _check_donors(self.donors)
        if not self.blocks:
            raise ValueError("blocks names no decoder layers; expected an owner for early, mid and late")
        _check_expressions("blocks", self.blocks, (*BLOCKS, "llm"), "rest")
        _check_expressions("rest", self.rest, ALL_REGIONS, "blocks")
        for where, owner in (*_named("blocks", self.blocks), *_named("rest", self.rest)):
            for name in donors_of(owner):
                _check_known(where, name, self.donors)
        if self.files is not None:
            _check_known("files", self.files, self.donors)
        others = list(self.donors)[1:]  # the first is always used: it determines the layout
        idle = [name for name in others if name not in self.used_donors and name != self.files_donor]
        if idle:
            raise ValueError(
                f"donor {idle[0]!r} is never used ({len(idle)} such); give it a block or a region, or leave it out"
            )

    @property
    def files_donor(self) -> str:
        """The donor whose files other than weights are copied."""
        return self.files or next(iter(self.donors))

    @property
    def used_donors(self) -> tuple[str, ...]:
        """The donors that own weights, in the order they are named."""
        used = {name for owner in (*self.blocks.values(), *self.rest.values()) for name in donors_of(owner)}
        return tuple(name for name in self.donors if name in used)


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe from YAML.

    Raises:
        ValueError: for a key that is unknown, missing, malformed or duplicated; one line that begins with the file.
    """
    values = read_yaml(path)
    try:
        _check_no_key_twice(path)
        return _recipe_from(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def recipe_from_pattern(
    pattern: str,
    *,
    donors: Sequence[str],
    rest: Sequence[str],
    partition: str | None = None,
    cuts: Sequence[int] | None = None,
    files: str | None = None,
) -> Recipe:
    """Returns the recipe of a pattern `EARLY:MID:LATE`.

    Args:
        pattern: three donors' names, such as `in:rl:rl`.
        donors: `NAME=CHECKPOINT` each.
        rest: one donor's name for all regions, or `REGION=NAME` for each.
        partition: `thirds` (the default) or `paper`.
        cuts: two layer numbers instead.
        files: the donor whose files other than weights are copied.
    """
    names = pattern.split(":")
    if len(names) != len(BLOCKS) or not all(names):
        raise ValueError(f"pattern {pattern!r} is not EARLY:MID:LATE; expected three donors' names, such as in:rl:rl")
    return _recipe_from(
        {
            "donors": parse_donors(donors),
            "blocks": dict(zip(BLOCKS, names, strict=True)),
            "rest": _parse_rest(rest),
            "partition": partition,
            "cuts": cuts or None,
            "files": files,
        }
    )


def parse_donors(donors: Sequence[str]) -> dict[str, str]:
    """Reads `NAME=CHECKPOINT` entries."""
    return dict(_pairs("--donor", donors, "NAME=CHECKPOINT, such as in=outputs/sft/final"))


def check_donor(donor: str) -> None:
    """Refuses a `NAME=CHECKPOINT` that is malformed, or whose checkpoint is plainly not there.

    Raises:
        ValueError: that says what is wrong.
    """
    for checkpoint in parse_donors([donor]).values():
        check_model(checkpoint)


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as a dict in its YAML form, with `files` explicit."""

    return {
        "donors": dict(recipe.donors),
        **({"cuts": list(recipe.cuts)} if recipe.cuts else {"partition": recipe.partition}),
        "blocks": {expression: owner_dict(owner) for expression, owner in recipe.blocks.items()},
        "rest": {expression: owner_dict(owner) for expression, owner in recipe.rest.items()},
        "files": recipe.files_donor,
    }


def owner_dict(owner: Owner) -> str | dict[str, Any]:
    """Returns an owner in its YAML form."""
    if isinstance(owner, Blend):
        return {key: value for key, value in vars(owner).items() if value is not None}
    return owner


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Inverse of `recipe_dict`."""
    return _recipe_from(dict(values))


def _recipe_from(values: dict[str, Any]) -> Recipe:
    for key in values:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), KEYS)} (expected {', '.join(KEYS)})")
    for key in ("donors", "blocks", "rest"):
        if not isinstance(values.get(key), dict):
            found = "nothing" if values.get(key) is None else repr(values[key])
            raise ValueError(f"{key} holds {found}; expected a mapping, as in docs/design.md")
    partition, cuts = values.get("partition"), values.get("cuts")
    if isinstance(partition, dict):
        if set(partition) != {"cuts"}:
            raise ValueError(f"partition is {partition!r}; expected thirds, paper, or cuts: [8, 20]")
        if cuts is not None:
            raise ValueError("cuts is given twice, also under partition; expected it once")
        cuts = partition["cuts"]
        partition = None
    if partition is not None and cuts is not None:
        raise ValueError(f"partition {partition!r} and cuts {cuts!r} exclude each other; expected one of them")
    for key, value in (("partition", partition), ("files", values.get("files"))):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key} is {value!r}; expected a string")
    return Recipe(
        donors=_texts("donors", values["donors"]),
        blocks={key: _owner(f"blocks {key}", owner) for key, owner in values["blocks"].items()},
        rest={key: _owner(f"rest {key}", owner) for key, owner in values["rest"].items()},
        partition="thirds" if partition is None else partition,
        cuts=None if cuts is None else _pair(cuts),
        files=values.get("files"),
    )


def _owner(where: str, value: Any) -> Owner:
    if isinstance(value, str):
        return value
    expected = "expected a donor's name or {start: sft, end: rl, alpha: 0.5}"
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the owner is {value!r}; {expected}")
    fields = tuple(Blend.__dataclass_fields__)
    for key in value:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(str(key), fields)}; {expected}")
    lacking = [key for key in fields if key not in value and key != "onto"]
    if lacking:
        raise ValueError(f"{where}: a blend lacks {lacking[0]!r}; {expected}")
    names = {key: value[key] for key in ("start", "end", "onto") if value.get(key) is not None}
    try:
        return Blend(alpha=value["alpha"], **_texts(where, names))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_donors(donors: Mapping[str, str]) -> None:
    if not donors:
        raise ValueError("donors names no checkpoint; expected NAME: CHECKPOINT for each")
    for name in donors:
        if not isinstance(name, str) or not _DONOR_NAME.fullmatch(name):
            raise ValueError(
                f"donor name {name!r} is not usable; expected letters, digits, '_', '.' or '-' (YAML reads on, yes and "
                "numbers as other types: quote them)"
            )


def _check_expressions(key: str, named: Mapping[str, Owner], words: Sequence[str], other: str) -> None:
    for expression in named:
        word = re.split("[:.]", str(expression))[0]
        if isinstance(expression, str) and word in words:
            continue
        if isinstance(expression, str) and word in (*BLOCKS, "llm", *ALL_REGIONS):
            raise ValueError(f"{key}: {expression!r} belongs under {other}; expected {', '.join(words)}")
        if re.fullmatch(r"\d+(-\d+)?", str(expression)):
            raise ValueError(f"{key}: {expression!r} names layers without a stack; did you mean 'llm:{expression}'?")
        raise ValueError(f"{key}: {expression!r} is unknown{did_you_mean(str(expression), words)} ({', '.join(words)})")


def _check_known(where: str, name: str, donors: Mapping[str, str]) -> None:
    if name not in donors:
        raise ValueError(
            f"{where}: {name!r} is not a donor{did_you_mean(name.lower(), donors)} (donors are {', '.join(donors)})"
        )


def _named(key: str, owners: Mapping[str, Owner]) -> Iterator[tuple[str, Owner]]:
    return ((f"{key} {expression}", owner) for expression, owner in owners.items())


def _texts(where: str, values: Mapping[Any, Any]) -> dict[str, str]:
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} is {value!r}; expected a string")
    return dict(values)


def _pair(cuts: Any) -> tuple[int, int]:
    if not isinstance(cuts, list | tuple) or len(cuts) != 2 or not all(type(cut) is int for cut in cuts):
        raise ValueError(f"cuts is {cuts!r}; expected two layer numbers, such as [8, 20]")
    return cuts[0], cuts[1]


def _parse_rest(rest: Sequence[str]) -> dict[str, Owner]:
    if not rest:
        raise ValueError(f"--rest is missing; expected one donor for all of {', '.join(REGIONS)}, or REGION=NAME each")
    if len(rest) == 1 and "=" not in rest[0]:
        return dict.fromkeys(REGIONS, rest[0])
    return dict(_pairs("--rest", rest, "REGION=NAME for each region, such as vision=in, or one donor's name for all"))


def _pairs(flag: str, entries: Sequence[str], expected: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for entry in entries:
        name, separator, value = entry.partition("=")
        if not (separator and name and value):
            raise ValueError(f"{flag} {entry!r} is not {expected}")
        if name in seen:
            raise ValueError(f"{flag} names {name!r} twice; expected each once")
        seen.add(name)
        yield name, value


def _check_no_key_twice(path: Path) -> None:
    """Rejects duplicate keys: YAML silently keeps the last one, so an owner would be lost without notice."""
    import yaml

    nodes = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.MappingNode):
            continue
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: {key!r} appears twice; expected it once")
        nodes.extend(value for _, value in node.value)
