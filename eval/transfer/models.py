"""Which modality was a model trained on? Its name says it; its replies are sorted by the modality of their prompts.

    data-MODALITY, data-all, data-boundary    reinforcement learning on a part of the prompts; `full` is `data-all`
    sft-MODALITY, sft-all                     further supervised training from the same start
    data-MODALITY-freeze-mid, …               the same with a freezing, which is a method of its own

Names are compared without case, blanks and signs: `data-chest-x-ray` was trained on `Chest X-Ray`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data_builders.prompt_sets.fields import plain_name
from eval.compare.alike import RECORDS_FILE, check_alike
from eval.replies.outcomes import Outcome, outcomes
from eval.statistics.pairing import Entry
from eval.statistics.strata import number_clusters
from tracking.command import did_you_mean
from tracking.records import read_records

RL, SFT = "rl", "sft"
PREFIXES = {"data": RL, "sft": SFT}
"""First word of a model's name -> its method."""
ALL, BOUNDARY = "all", "boundary"
MIXED = (ALL, BOUNDARY)
"""What models were trained on that saw several modalities."""
FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a model's name says about its training."""

    method: str
    """`rl` or `sft`, with the freezing if there was one."""
    on: str
    """A modality, or one of `MIXED`."""


def parse_trained(name: str, modalities: Sequence[str]) -> Trained:
    """Reads a model's name.

    Raises:
        ValueError: if it names neither a modality of the prompts nor a mixture.
    """
    if name == FULL:
        return Trained(method=RL, on=ALL)
    prefix, _, rest = name.partition("-")
    places = {**{plain_name(modality): modality for modality in modalities}, **{mixed: mixed for mixed in MIXED}}
    matching = [place for place in places if f"{plain_name(rest)}-".startswith(f"{place}-")]
    if prefix not in PREFIXES or not matching:
        known = [f"{prefix if prefix in PREFIXES else 'data'}-{place}" for place in places]
        raise ValueError(
            f"model {name!r} does not say what it was trained on; expected one of {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        )
    place = max(matching, key=len)
    variant = plain_name(rest)[len(place) + 1 :]
    return Trained(method=" ".join(filter(None, (PREFIXES[prefix], variant))), on=places[place])


def check_names(modalities: Sequence[str]) -> None:
    """Refuses modalities that names of models cannot tell apart.

    Raises:
        ValueError: for two modalities with one spelling, one that is spelled as a mixture, and one without a letter.
    """
    spelled: dict[str, str] = {}
    for modality in modalities:
        place = plain_name(modality)
        fault = None
        if not place:
            fault = "which says nothing; expected a name with letters or digits"
        elif place in MIXED:
            fault = "which stands for a mixture"
        elif place in spelled:
            fault = f"as does {spelled[place]!r}"
        if fault is not None:
            raise ValueError(
                f"modality {modality!r} gives models the name 'data-{place}', {fault}; rename it in the prompts"
            )
        spelled[place] = modality


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What all models answered, modality by modality; a column is a study of its own."""

    values: Mapping[str, Mapping[str, Float[np.ndarray, "seeds n columns"]]]
    """Model -> modality -> the share of samples that are right; NaN where none was judged."""
    clusters: Mapping[str, Int[np.ndarray, " n"] | None]
    """Modality -> number of each prompt's cluster, the same in all modalities; None if prompts are independent."""
    trained: Mapping[str, Trained]
    """Model -> its training; without the start."""
    start: str
    seeded: frozenset[str]
    """Models whose rows are training runs with seeds; the others exist once."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.clusters)

    def num_seeds(self, model: str) -> int:
        return len(next(iter(self.values[model].values())))


def collect(entries: Sequence[Entry], start: str) -> Answers:
    """Reads all evaluations, prompt by prompt in one order, whatever task a prompt belongs to.

    Raises:
        ValueError: if they were not asked alike, if prompts have fewer than two modalities or one has none, or for a
            model's name.
    """
    check_alike(entries)
    by_label: dict[str, dict[str, dict[str, Outcome]]] = {}
    for entry in entries:
        records = read_records(entry.directory / RECORDS_FILE)
        of_prompt = {f"{record['task']}/{record['id']}": str(record.get("modality") or "") for record in records}
        found = by_label.setdefault(entry.label, {})
        for outcome in outcomes(records):
            found.setdefault(of_prompt[outcome.key], {})[outcome.key] = outcome
        without = found.pop("", {})
        if without and found:
            raise ValueError(
                f"{entry.directory}: {len(without)} prompts have no modality, the first is {next(iter(without))}; "
                'expected `meta: {"modality": …}` in every prompt'
            )
    first = by_label[entries[0].label]
    if len(first) < 2:
        named = f"only {next(iter(first))}" if first else "none"
        raise ValueError(
            f'{entries[0].directory}: the prompts have {named} as modality; expected two or more in `meta: {{"modality"'
            ": …}`, evaluated with this version of eval.run"
        )
    check_names(list(first))
    prompts = {modality: sorted(first[modality]) for modality in sorted(first)}
    for entry in entries:
        if {modality: sorted(own) for modality, own in by_label[entry.label].items()} != prompts:
            raise ValueError(f"{entry.label} and {entries[0].label} answered different prompts")
    names = list(dict.fromkeys(entry.name for entry in entries))
    return Answers(
        values={
            name: {
                modality: np.array(
                    [
                        [by_label[entry.label][modality][key].accuracy for key in keys]
                        for entry in entries
                        if entry.name == name
                    ],
                    float,
                )[..., None]
                for modality, keys in prompts.items()
            }
            for name in names
        },
        clusters=number_clusters(
            {modality: [first[modality][key].cluster for key in keys] for modality, keys in prompts.items()}
        ),
        trained=_trainings([name for name in names if name != start], list(prompts)),
        start=start,
        seeded=frozenset(entry.name for entry in entries if entry.seed is not None),
    )


def _trainings(names: Sequence[str], modalities: Sequence[str]) -> dict[str, Trained]:
    """Returns the training of every model.

    Raises:
        ValueError: if a name says none, or two names say the same one.
    """
    found: dict[str, Trained] = {}
    for name in names:
        own = parse_trained(name, modalities)
        for twin, its in found.items():
            if its == own:
                raise ValueError(f"models {twin} and {name} had one training, {own.method} on {own.on}; leave one out")
        found[name] = own
    return found
