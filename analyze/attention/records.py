"""How is a measured reply stored and read back? Masses in a record, replies by group and model.

A record contains every head's means over the whole reply, and means over heads for each part, as fp32 in base64.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tracking.records import Record

SEGMENTS = ("vision", "question", "template", "sink", "earlier", "self")
"""Segments that a reply's token attends to; their masses sum to one.

`sink` is the first token, `template` every other prompt token that is neither image nor question (roles, system prompt,
the prompt style's text), `earlier` the reply before the token, `self` the token itself.
"""
MEASURES = (*SEGMENTS, "entropy", "vision_entropy", "vision_top_share")
"""Measures per head: masses, the entropy (nats) of the attention over all tokens and over the vision tokens, and the
share of the vision mass on the most attended vision tokens."""
DERIVED = ("vision_per_token", "vision_over_uniform", "vision_against_question")
"""The vision mass per vision token; relative to uniform attention over all visible tokens; vision / (vision +
question)."""
HEAD_MEASURES = ("vision", "question", "vision_entropy", "vision_top_share")
"""Measures reported per head."""
PARTS = ("reply", "think", "answer")
"""Parts of the reply: all tokens, those between think tags, those after (or between answer tags)."""
ALL = "all"
"""Name of the pooled ability of a task with several abilities."""


@dataclass(frozen=True)
class Label:
    """One model of the comparison: a name, and a training seed, if any."""

    name: str
    seed: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.seed}" if self.seed else self.name


@dataclass(frozen=True)
class Group:
    """The replies of one model to the prompts of one ability of a task."""

    ids: tuple[str, ...]
    layers: dict[str, Float[np.ndarray, "n layers measures"]]
    """Per part, the mean over heads of `MEASURES`, then `DERIVED`; NaN for missing values."""
    heads: Float[np.ndarray, "n layers heads measures"]
    """`HEAD_MEASURES` over the whole reply."""

    def layers_of(self, ids: Sequence[str]) -> dict[str, Float[np.ndarray, "n layers measures"]]:
        """Returns `layers` of these prompts, in order."""
        places = {name: place for place, name in enumerate(self.ids)}
        order = [places[name] for name in ids]
        return {part: values[order] for part, values in self.layers.items()}


Place = tuple[str, str, str]
"""Mode, task and ability."""
Groups = dict[Place, dict[Label, Group]]


def encode_masses(masses: Float[np.ndarray, "parts layers heads measures"]) -> dict[str, Any]:
    """Encodes a reply for its record: every head over the whole reply, and means over heads for its parts."""
    means = masses[1:].mean(2)
    present = {part: mean for part, mean in zip(PARTS[1:], means, strict=True) if not np.isnan(mean).all()}
    return {
        "shape": list(masses.shape[1:]),
        "heads": _to_text(masses[0]),
        "parts": {part: _to_text(mean) for part, mean in present.items()},
    }


def decode_masses(
    record: Record,
) -> tuple[dict[str, Float[np.ndarray, "layers measures"]], Float[np.ndarray, "layers heads measures"]]:
    """Returns a record's means over heads per part, with the derived measures, and every head of the whole reply."""
    num_layers, _, num_measures = record["shape"]
    heads = _from_text(record["heads"], record["shape"])
    means = {PARTS[0]: heads.mean(1)}
    means |= {part: _from_text(text, (num_layers, num_measures)) for part, text in record["parts"].items()}
    absent = np.full((num_layers, num_measures), np.nan)
    layers = {}
    for part in PARTS:
        mean = means.get(part, absent)
        vision, question = (mean[:, SEGMENTS.index(name)] for name in ("vision", "question"))
        derived = [
            vision / (record["num_vision_tokens"] or np.nan),
            vision / (record["uniform"].get(part) or np.nan),
            vision / (vision + question),
        ]
        layers[part] = np.concatenate([mean, np.stack(derived, 1)], 1)
    return layers, heads


def collect(records: Sequence[Record]) -> Groups:
    """Returns the measured replies by mode, task, ability (plus `all` if there are several) and model."""
    chosen = [MEASURES.index(name) for name in HEAD_MEASURES]
    rows: dict[Place, dict[Label, list[tuple[str, dict[str, np.ndarray], np.ndarray]]]] = {}
    for record in records:
        if "skipped" in record:
            continue
        layers, heads = decode_masses(record)
        row = (record["id"], layers, heads[..., chosen].astype(np.float32))
        label = Label(record["model"], record["seed"])
        for ability in (record["ability"], ALL):
            place = (record["mode"], record["task"], ability)
            rows.setdefault(place, {}).setdefault(label, []).append(row)
    modes, tasks = (list(dict.fromkeys(place[number] for place in rows)) for number in (0, 1))
    ordered = sorted(rows, key=lambda place: (modes.index(place[0]), tasks.index(place[1]), place[2] == ALL, place[2]))
    num_abilities: dict[tuple[str, str], int] = {}
    for mode, task, _ in rows:
        num_abilities[mode, task] = num_abilities.get((mode, task), -1) + 1  # `all` does not count
    return {
        place: {
            label: Group(
                tuple(row[0] for row in group),
                {part: np.stack([row[1][part] for row in group]) for part in PARTS},
                np.stack([row[2] for row in group]),
            )
            for label, group in rows[place].items()
        }
        for place in ordered
        if place[2] != ALL or num_abilities[place[:2]] > 1
    }


def _to_text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _from_text(text: str, shape: Sequence[int]) -> np.ndarray:
    return np.asarray(np.frombuffer(base64.b64decode(text), "<f4"), dtype=float).reshape(tuple(shape))
