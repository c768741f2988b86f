"""How many prompts would this model answer right without their pictures? The control of pass@K.

With many samples, a model that guesses reaches a high pass@K as well: of four options, eight random ones hold the right
one nine times in ten. So pass@K is compared with what the model's own replies to *other* prompts would reach: those of
the same task, ability and modality, and of the same `kind` of question if the prompts have one. They follow the model's
habits, but know nothing of this prompt's picture. They are graded against this prompt's answer with `eval.grading`. If
R of J are right, K drawn at random reach 1 - C(J - R, K) / C(J, K).

An option's letter stands for its text, if this prompt has an option with the same text: options are shuffled, and a
habit is about what an option says.

A prompt's own replies are part of what other prompts are compared with. Its value therefore contains its influence on
them (the jackknife's first-order term), which is zero in the mean: without it, errors that prompts share would be
missing from the interval.

If more than `MOST_SOURCES` prompts share a kind, the replies of so many of them, drawn by a fixed seed, are taken.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from eval.grading import BoxSpace, grade, named_options
from eval.replies.answering import BOX_SCALE
from tracking.records import Record

MOST_SOURCES = 200
"""Prompts of one kind whose replies are graded against the answers of the others."""
SEED = 0
Answer = tuple[str | None, str | None]
"""What a reply said, and the text of the option that it named."""


def pass_at_k(num_judged: Int[np.ndarray, " n"], num_right: Int[np.ndarray, " n"], k: int) -> Float[np.ndarray, " n"]:
    """Returns the unbiased estimate of each prompt; NaN where fewer than k samples were judged.

    1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor cancels.
    """
    missed = np.ones(len(num_judged))
    for step in range(k):
        with np.errstate(divide="ignore", invalid="ignore"):
            missed *= np.clip((num_judged - num_right - step) / (num_judged - step), 0, None)
    return np.where(num_judged >= k, 1 - missed, np.nan)


def guess_values(samples: Sequence[Sequence[Record]], ks: Sequence[int]) -> Float[np.ndarray, "ks n"]:
    """Returns each prompt's pass@k by replies to the other prompts; NaN where fewer than k of them were judged.

    Args:
        samples: of one model and seed, of each prompt of one task, ability and modality.
        ks: numbers of samples.
    """
    kinds: dict[tuple[object, object], list[int]] = {}
    for number, own in enumerate(samples):
        kinds.setdefault((own[0].get("kind"), own[0].get("answer_kind")), []).append(number)
    found = np.full((len(ks), len(samples)), np.nan)
    for numbers in kinds.values():
        sources = np.sort(np.random.default_rng(SEED).permutation(len(numbers))[:MOST_SOURCES])
        right, judged = _graded([samples[number] for number in numbers], sources)
        for place, k in enumerate(ks):
            found[place, numbers] = guesses(right, judged, sources, k)
    return found


def guesses(
    right: Int[np.ndarray, "sources n"],
    judged: Int[np.ndarray, "sources n"],
    sources: Int[np.ndarray, " sources"],
    k: int,
) -> Float[np.ndarray, " n"]:
    """Returns each prompt's pass@k by the replies of other prompts, with its influence on theirs.

    Args:
        right: how many replies to a source are right for a prompt.
        judged: how many could be judged.
        sources: the source's number among the n prompts; its replies do not count for itself.
    """
    right, judged = right.copy(), judged.copy()
    places = np.arange(len(sources))
    right[places, sources] = judged[places, sources] = 0
    num_right, num_judged = right.sum(0), judged.sum(0)
    value = pass_at_k(num_judged, num_right, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = num_right / num_judged
        # d pass@k / d rate, times what a source moves the rate of each prompt by
        moved = np.nan_to_num(k * (1 - rate) ** (k - 1) * (right - judged * rate) / num_judged)
    influence = np.zeros(len(value))
    np.add.at(influence, sources, moved.sum(1))
    return np.asarray(value + influence)


def _graded(
    samples: Sequence[Sequence[Record]], sources: Int[np.ndarray, " sources"]
) -> tuple[Int[np.ndarray, "sources n"], Int[np.ndarray, "sources n"]]:
    """Grades the replies to the sources against the answer of every prompt; equal answers are graded once."""
    right = np.zeros((len(sources), len(samples)), int)
    judged = np.zeros_like(right)
    answers = [Counter(_answer(one) for one in samples[source]) for source in sources]
    asked: dict[Question, list[int]] = {}
    for number, own in enumerate(samples):
        asked.setdefault(_question(own[0]), []).append(number)
    for question, prompts in asked.items():
        verdicts: dict[Answer, bool | None] = {}
        for place, counts in enumerate(answers):
            for answer, count in counts.items():
                if answer not in verdicts:
                    verdicts[answer] = question.judge(answer)
                if (verdict := verdicts[answer]) is not None:
                    judged[place, prompts] += count
                    right[place, prompts] += count * verdict
    return right, judged


@dataclass(frozen=True)
class Question:
    """What a prompt's answer is judged by."""

    gold: str
    kind: str
    choices: tuple[str, ...]
    precision: int | None
    gold_option: str | None
    """The right option's text, as `named_options` spells it; None if the options have no texts."""
    options: frozenset[str]

    def judge(self, answer: Answer) -> bool | None:
        """Says whether an answer to another prompt is right for this one; None if that cannot be judged."""
        said, option = answer
        if said is None:
            return False
        if self.gold_option is not None and option in self.options:
            return option == self.gold_option
        return grade(f"<answer>{said}</answer>", self.gold, self.kind, self.choices, self.precision).correct


def _question(record: Record) -> Question:
    missing = [name for name in ("gold", "answer_kind") if not record.get(name)]
    if missing:
        raise ValueError(f"{record['key']} has no {missing[0]}; --by needs records with the gold answer and its kind")
    scale, gold = record.get(BOX_SCALE), record["gold"]
    kind, choices = record["answer_kind"], tuple(record.get("choices") or ())
    by_text = choices if kind == "choice" else ()
    return Question(
        gold=gold if scale is None else BoxSpace(*scale).gold_text(gold),
        kind=kind,
        choices=choices,
        precision=record.get("precision"),
        gold_option=_option(gold, by_text),
        options=frozenset(filter(None, (_option(chr(ord("A") + place), by_text) for place in range(len(by_text))))),
    )


def _answer(record: Record) -> Answer:
    said = record["extracted"]
    choices = tuple(record.get("choices") or ()) if record.get("answer_kind") == "choice" else ()
    return said, None if said is None else _option(said, choices)


@cache
def _option(answer: str, choices: tuple[str, ...]) -> str | None:
    """Returns the text of the one option that an answer names."""
    named = named_options(answer, choices) if choices else set()
    return next(iter(named)) if len(named) == 1 else None
