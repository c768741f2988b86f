"""Which column of a data set holds what? The columns of common RL data sets, and columns that a person names.

    --schema easyr1                              the columns of EasyR1's data sets, such as hiyouga/geometry3k
    --columns prompt=query answer=label.text     single columns; a dot names a field inside a column

A column may hold its value as JSON text (`reward_model`, `images`, `extra_info`).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tracking.command import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of a data set's columns."""

    prompt: str = "prompt"
    """The question: a text, or messages."""
    answer: str = "reward_model.ground_truth"
    images: str = "images"
    """One image or several; optional."""
    data_source: str = "data_source"
    """Name of the row's origin, for rules per data source; optional."""
    extra: str = "extra_info"
    """What is kept about a row, such as its number; optional."""

    @property
    def top_level(self) -> tuple[str, ...]:
        """All columns to read; a name with a dot is a column, or a field inside one."""
        names = [getattr(self, field.name) for field in fields(self)]
        return tuple(dict.fromkeys(part for name in names for part in (_top(name), name)))

    def missing(self, found: Collection[str]) -> list[str]:
        """Returns the columns that are not among those found, and without which no row can be used."""
        return [_top(name) for name in (self.prompt, self.answer) if not {_top(name), name} & set(found)]


SCHEMAS = {
    "verl": Columns(),
    "easyr1": Columns(prompt="problem", answer="answer"),
    "mmk12": Columns(prompt="question", answer="answer", images="image", data_source="subject", extra="id"),
    "virl39k": Columns(prompt="question", answer="answer", images="image", data_source="source", extra="qid"),
}
"""verl's own; hiyouga's data sets for EasyR1; FanqingM/MMK12; TIGER-Lab/ViRL39K (from their cards)."""
WITHOUT_PLACEHOLDERS = ("mmk12",)
"""Schemas whose questions have images but no `<image>`."""
FIELDS = tuple(field.name for field in fields(Columns))


def read_columns(schema: str, named: Sequence[str]) -> Columns:
    """Returns the columns of a schema, some of them named otherwise.

    Args:
        named: FIELD=NAME, such as `answer=solution`.

    Raises:
        ValueError: for an unknown schema or field, or a field that is named twice.
    """
    if schema not in SCHEMAS:
        raise ValueError(f"schema {schema!r} is not one of {', '.join(SCHEMAS)}{did_you_mean(schema, SCHEMAS)}")
    changes: dict[str, str] = {}
    for rule in named:
        field, _, name = rule.partition("=")
        if field not in FIELDS or not name:
            raise ValueError(
                f"columns {rule!r}: expected FIELD=NAME, with one of the fields {', '.join(FIELDS)}"
                f"{did_you_mean(field, FIELDS)}"
            )
        if field in changes:
            raise ValueError(f"columns {rule!r}: a second name for {field}")
        changes[field] = name
    return replace(SCHEMAS[schema], **changes)


def check_columns_named(place: object, columns: Columns, found: Collection[str]) -> None:
    """Refuses a source without the question's or the answer's column, and says how to name them.

    Args:
        found: the names of the source's columns.

    Raises:
        ValueError: if a column is missing.
    """
    missing = columns.missing(found)
    if not missing:
        return
    fitting = [name for name, other in SCHEMAS.items() if not other.missing(found)]
    way_out = (
        f"use --schema {' or '.join(fitting)}" if fitting else "name the columns: --columns prompt=NAME answer=NAME"
    )
    raise ValueError(f"source {place} has no column {missing[0]!r}; it has {', '.join(found) or 'none'}; {way_out}")


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a column, or of a field inside one; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = from_json(value)
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def from_json(value: Any) -> Any:
    """Returns the list or mapping that a JSON text stands for; other values as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _top(name: str) -> str:
    return name.partition(".")[0]
