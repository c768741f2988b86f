"""How often is each prompt answered right in K samples? What every metric of the support tables is computed from.

A *group* is one ability of one task, or with `by` one modality of it. A prompt counts for pass@k if at least k of its
samples were judged.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from eval.compare.alike import RECORDS_FILE, check_alike
from eval.grading import CORRECT, UNSCORED
from eval.replies.outcomes import GIVEN
from eval.statistics.pairing import Entry
from eval.statistics.strata import number_clusters
from eval.support.guessing import guess_values, pass_at_k
from eval.support.votes import RIGHT, vote
from tracking.progress import progress
from tracking.records import Record, read_records

PASS, MAJORITY, SOMETIMES = "pass@k", "majority", "sometimes right"
GAP, GUESSING, SUPPORT = "gap", "guessing", "support"
"""Metrics of one modality: pass@K - pass@1, pass@K of replies to other prompts, pass@K less that."""
MODALITY = "modality"
NUM_HALVES = 2

PromptKey = tuple[str, str, str, str]
"""Task, ability, modality (empty if the prompts are not divided by it), id."""


def majority_share(samples: Sequence[Record]) -> float | None:
    """Returns the chance that a vote of one prompt's samples gives the right answer; None where none was judged."""
    judged = [sample for sample in samples if sample["status"] != UNSCORED]
    if not judged:
        return None
    votes = Counter(vote(sample) for sample in judged if sample["extracted"] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return float(RIGHT in winners) / len(winners)


@dataclass(frozen=True)
class Support:
    """One model's samples of one group, a row a seed."""

    seeds: tuple[int | None, ...]
    num_judged: Int[np.ndarray, "seeds n"]
    num_right: Int[np.ndarray, "seeds n"]
    majority: Float[np.ndarray, "seeds n"]
    """NaN where no sample was judged."""
    halves: Float[np.ndarray, "halves seeds n"]
    """Share that is right of the samples with even and with odd numbers; NaN where none of them was judged."""
    guesses: Mapping[int, Float[np.ndarray, "seeds n"]]
    """k -> pass@k that replies to the other prompts would reach; empty if the prompts are not divided by modality."""

    @property
    def trained(self) -> bool:
        return self.seeds != (None,)

    def values(self, metric: str, k: int) -> Float[np.ndarray, "seeds n"]:
        """Returns what each prompt counts for a metric; NaN where it cannot be said."""
        if metric == MAJORITY:
            return self.majority
        if metric == SOMETIMES:
            between = (self.num_right > 0) & (self.num_right < self.num_judged)
            return np.where(self.num_judged > 0, between, np.nan)
        if metric == GAP:
            return np.asarray(self.values(PASS, k) - self.values(PASS, 1))
        if metric in (GUESSING, SUPPORT):
            return self.guesses[k] if metric == GUESSING else np.asarray(self.values(PASS, k) - self.guesses[k])
        return np.stack(
            [pass_at_k(judged, right, k) for judged, right in zip(self.num_judged, self.num_right, strict=True)]
        )


@dataclass(frozen=True)
class Group:
    """One ability of one task, or one modality of it, answered by every model."""

    task: str
    ability: str
    num_samples: int
    """K of pass@K; there may be more samples, which make the estimates more exact."""
    clusters: Int[np.ndarray, " n"] | None
    """Number of each prompt's cluster, the same in all groups; None if prompts are independent."""
    models: dict[str, Support]
    modality: str | None = None

    def metrics(self) -> list[tuple[str, int | None]]:
        """Returns every metric, pass@k once for each k."""
        found: list[tuple[str, int | None]] = [
            *((PASS, k) for k in range(1, self.num_samples + 1)),
            (MAJORITY, None),
            (SOMETIMES, None),
        ]
        if self.modality is None:
            return found
        found += [(name, self.num_samples) for name in (GAP, GUESSING, SUPPORT)]
        return [*found, (GUESSING, 1), (SUPPORT, 1)]

    def companions(self, involved: Collection[str]) -> list[str]:
        """Returns the models with seeds that are not in a contrast; they help to estimate how much seeds differ."""
        if self.modality is None:
            return []
        return [name for name, support in self.models.items() if support.trained and name not in involved]


def collect(entries: Sequence[Entry], by: str | None = None, k: int | None = None) -> list[Group]:
    """Reads all evaluations, prompt by prompt in one order.

    Args:
        by: `modality`, to divide the prompts by it.
        k: K of pass@K; the number of samples by default.

    Raises:
        ValueError: where they were not asked alike, with one sample only or fewer than k, or where a prompt has no
            modality.
    """
    check_alike(entries)
    by_label = {entry.label: _by_prompt(entry, by) for entry in entries}
    first = by_label[entries[0].label]
    named = list(dict.fromkeys(key[:2] for key in first))
    places = sorted({key[:3] for key in first}, key=lambda place: (named.index(place[:2]), place[2]))
    clusters = number_clusters(
        {place: [first[key][0].get("cluster") for key in first if key[:3] == place] for place in places}
    )
    groups = []
    for place in progress(places, label="guessing", unit="modality") if by else places:
        keys = [key for key in first if key[:3] == place]
        num_samples = max(len(first[key]) for key in keys)
        if num_samples < 2:
            raise ValueError(
                f"{entries[0].directory}: one reply a prompt; evaluate with --num-samples K --temperature T"
            )
        if k is not None and k > num_samples:
            raise ValueError(
                f"k is {k}; expected at most {num_samples}, the samples a prompt of {entries[0].directory}"
            )
        num_samples = k or num_samples
        models = {}
        for name in dict.fromkeys(entry.name for entry in entries):
            own = [entry for entry in entries if entry.name == name]
            samples = [[by_label[entry.label][key] for key in keys] for entry in own]
            models[name] = _support([entry.seed for entry in own], samples, num_samples if by else None)
        task, ability, modality = place
        groups.append(Group(task, ability, num_samples, clusters[place], models, modality if by else None))
    return groups


def _by_prompt(entry: Entry, by: str | None) -> dict[PromptKey, list[Record]]:
    found: dict[PromptKey, list[Record]] = {}
    for record in read_records(entry.directory / RECORDS_FILE):
        if record.get("condition", GIVEN) != GIVEN:
            continue
        if by is not None and not record.get(by):
            raise ValueError(
                f"{entry.directory}: {record['task']}/{record['id']} has no {by}; expected prompts with "
                f'`meta: {{"{by}": …}}`, evaluated with this version of eval.run, or leave out --by'
            )
        place = record["task"], record["ability"], "" if by is None else str(record[by]), record["id"]
        found.setdefault(place, []).append(record)
    return found


def _support(
    seeds: Sequence[int | None], samples: Sequence[Sequence[Sequence[Record]]], guessed: int | None
) -> Support:
    """Returns a model's numbers.

    Args:
        samples: of each seed, of each prompt.
        guessed: K of the guessing control; None without it.
    """
    return Support(
        seeds=tuple(seeds),
        num_judged=np.array([[sum(one["status"] != UNSCORED for one in own) for own in row] for row in samples]),
        num_right=np.array([[sum(one["status"] == CORRECT for one in own) for own in row] for row in samples]),
        majority=np.array([[majority_share(own) for own in row] for row in samples], dtype=float),
        halves=np.array(
            [[[_share(own, half) for own in row] for row in samples] for half in range(NUM_HALVES)], dtype=float
        ),
        guesses={} if guessed is None else _guesses(samples, (1, guessed)),
    )


def _guesses(
    samples: Sequence[Sequence[Sequence[Record]]], ks: Sequence[int]
) -> dict[int, Float[np.ndarray, "seeds n"]]:
    found = np.stack([guess_values(row, ks) for row in samples])  # [seeds, ks, n]
    return {k: found[:, place] for place, k in enumerate(ks)}


def _share(samples: Sequence[Record], half: int) -> float | None:
    judged = [
        one["status"] == CORRECT
        for place, one in enumerate(samples)
        if one["status"] != UNSCORED and one.get("sample", place) % NUM_HALVES == half
    ]
    return sum(judged) / len(judged) if judged else None
