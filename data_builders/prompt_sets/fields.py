"""Which prompts of a set are meant? Selection by the fields of `meta`, or by ability.

modality=negative            prompts whose meta has this modality
modality=negative,speckle    one of these

A value may contain commas itself: what is between commas is joined to the longest value that a prompt has.
"""

import re
from collections.abc import Mapping, Sequence

from data_builders.prompt_sets.prompts import Prompt
from tracking.command import did_you_mean

ABILITY, CLASS = "ability", "class"
MOST_NAMED = 12
"""Values that an error names at most."""


def field_value(prompt: Prompt, name: str) -> str | None:
    """Returns a field of a prompt's `meta` as text, or its ability; None if it has none.

    A prompt without a `class` is of the class of its answer.
    """
    if name == ABILITY:
        return prompt.ability
    value = (prompt.meta or {}).get(name)
    if isinstance(value, list | dict):
        return None
    if value is None:
        return prompt.answer if name == CLASS else None
    return str(value)


def plain_name(text: str) -> str:
    """Returns a value as names of arms and folders spell it: `Chest X-Ray (AP)` is `chest-x-ray-ap`."""
    return re.sub(r"[\W_]+", "-", text.casefold()).strip("-")


def parse_selection(entry: str) -> tuple[str, tuple[str, ...]]:
    """Parses FIELD=VALUE,VALUE.

    Raises:
        ValueError: for an entry of another form.
    """
    name, separator, text = entry.partition("=")
    values = tuple(value.strip() for value in text.split(","))
    if not separator or not name.strip() or not all(values):
        raise ValueError(f"select {entry!r} is no FIELD=VALUE, such as modality=negative or modality=negative,speckle")
    return name.strip(), values


def check_selection(entry: str) -> None:
    """Refuses an entry of another form than FIELD=VALUE,VALUE."""
    parse_selection(entry)


def check_field(prompts: Sequence[Prompt], name: str, *, where: str) -> dict[str, int]:
    """Returns the values of a field, each with its number of prompts.

    Args:
        where: the prompts, named at the beginning of an error.

    Raises:
        ValueError: if no prompt has the field.
    """
    counts: dict[str, int] = {}
    for prompt in prompts:
        value = field_value(prompt, name)
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    if counts:
        return counts
    fields = {key for prompt in prompts for key in prompt.meta or {} if field_value(prompt, key) is not None}
    known = sorted({ABILITY, CLASS, *fields})
    raise ValueError(f"{where} has no field {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")


def select_prompts(prompts: Sequence[Prompt], entries: Sequence[str], *, where: str) -> list[Prompt]:
    """Returns the prompts for which every entry FIELD=VALUE,VALUE holds, in their order.

    Args:
        where: the prompts, named at the beginning of an error.

    Raises:
        ValueError: for a field or a value that no prompt has, and if no prompt fulfils all entries.
    """
    chosen = list(prompts)
    for entry in entries:
        name, values = parse_selection(entry)
        counts = check_field(prompts, name, where=where)
        values = _join(values, {_spaced(value): value for value in counts})
        for value in values:
            if value not in counts:
                listed = sorted(counts)
                more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
                raise ValueError(
                    f"{where} has no prompt with {name} {value!r}{did_you_mean(value, listed)}; it has "
                    f"{', '.join(listed[:MOST_NAMED])}{more}"
                )
        chosen = [prompt for prompt in chosen if field_value(prompt, name) in values]
    if not chosen:
        raise ValueError(f"{where} has no prompt for which all of {', '.join(entries)} hold; leave one of them out")
    return chosen


def _join(parts: Sequence[str], present: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the values that the parts between commas stand for; a part that belongs to none is returned as it is."""
    found: list[str] = []
    start = 0
    while start < len(parts):
        ends = range(len(parts), start, -1)
        end = next((end for end in ends if ", ".join(parts[start:end]) in present), start + 1)
        text = ", ".join(parts[start:end])
        found.append(present.get(text, text))
        start = end
    return tuple(found)


def _spaced(value: str) -> str:
    return ", ".join(part.strip() for part in value.split(","))
