"""What did the swap of `analyze.swap` do to a pair's answer? The layer up to which the answer moves, for every model.

With `--mode from` the model answers with the source's picture in all layers >= k. While k is small, the answer is the
source picture's; from some layer on the picture has been read, and swapping it no longer moves the answer. Pairs that
all models answer right without a swap come first, and among them those on which the models differ most in this layer.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyze.look.plan import Reader
from data_builders.pairs.files import find_sets, pairs_fingerprint, read_pairs
from data_builders.pairs.pair import Pair
from eval.statistics.pairing import parse_entry
from tracking.command import did_you_mean
from tracking.records import Record, read_records
from tracking.run import is_finished, read_run

MODE = "from"
SOURCE, TARGET, OTHER = "source", "target", "other"
"""Whose answer a reply gives: that of the picture that is swapped in, that of the picture asked about, or neither's."""


@dataclass(frozen=True, kw_only=True)
class SwappedAnswers:
    """What one model answered to one pair."""

    model: str
    plain_target: str
    """Its reply to the target picture."""
    plain_source: str
    """Its reply to the source picture."""
    answers: tuple[str, ...]
    """Whose answer it gives when the swap begins at layer k = 0 … L; k = L is no swap."""
    replies: tuple[str, ...]

    @property
    def last_moved(self) -> int | None:
        """The largest k for which the answer is the source's; None if it never is."""
        return max((layer for layer, answer in enumerate(self.answers) if answer == SOURCE), default=None)

    @property
    def said(self) -> str:
        """Says where the answer moves, in one sentence."""
        last = self.last_moved
        if last is None:
            return "no swap gives the source’s answer"
        if last == len(self.answers) - 1:
            return "it gives the source’s answer also without a swap"
        gaps = self.answers[: last + 1].count(SOURCE) <= last
        return f"the answer moves if the swap begins at layer {last} or below" + (", with gaps" if gaps else "")


@dataclass(frozen=True, kw_only=True)
class SwappedPair:
    """A pair with what every model answered."""

    pair: Pair
    directory: Path
    answers: tuple[SwappedAnswers, ...]

    @property
    def image_paths(self) -> tuple[Path, Path]:
        """The target and the source picture."""
        return self.directory / self.pair.target_image, self.directory / self.pair.source_image

    @property
    def right(self) -> bool:
        """True if every model answers right without a swap."""
        return all(own.answers[-1] == TARGET for own in self.answers)

    @property
    def spread(self) -> int:
        """How many layers the models' last moved layers are apart; -1 counts as never."""
        layers = [-1 if own.last_moved is None else own.last_moved for own in self.answers]
        return max(layers) - min(layers)


def read_swaps(swaps: Sequence[str], folders: Sequence[str], readers: Sequence[Reader]) -> list[SwappedPair]:
    """Returns the pairs that every named swap holds; see the module's docstring for their order.

    Args:
        swaps: `NAME=DIR` with the output directory of `analyze.swap`, NAME being one of the models.
        folders: folders of the pairs.
        readers: the models.

    Raises:
        ValueError: if a swap is unfinished, is another model's, has no mode `from`, or is of other pairs.
    """
    if not swaps:
        return []
    models = {reader.label: reader for reader in readers}
    records: dict[str, dict[tuple[str, str], Record]] = {}
    runs: dict[str, Mapping[str, Any]] = {}
    for entry in map(parse_entry, swaps):
        if entry.label not in models:
            raise ValueError(
                f"--swap {entry.label}={entry.directory}: expected the name of one of the models "
                f"({', '.join(models)}){did_you_mean(entry.label, list(models))}"
            )
        if entry.label in runs:
            raise ValueError(f"--swap names {entry.label} twice; expected one swap per model")
        runs[entry.label] = _check_run(entry.directory, models[entry.label])
        records[entry.label] = {
            (record["set"], record["id"]): record
            for record in read_records(entry.directory / "records.jsonl")
            if record["mode"] == MODE and record["left_out"] is None
        }
    pairs = _pairs(folders, runs)
    found = [
        SwappedPair(
            pair=pair, directory=directory,
            answers=tuple(_answers(model, own[key]) for model, own in records.items()),
        )
        for key, (directory, pair) in pairs.items()
        if all(key in own for own in records.values())
    ]  # fmt: skip
    if not found:
        raise ValueError(f"--swap: no pair was swapped in all of {', '.join(swaps)}; swap the same pairs")
    return sorted(found, key=lambda one: (not one.right, -one.spread, -_largest(one)))


def _check_run(directory: Path, reader: Reader) -> Mapping[str, Any]:
    if not is_finished(directory):
        raise ValueError(f"{directory} is not finished; run analyze.swap again to its end")
    run = read_run(directory)
    if run["command"] != "analyze.swap":
        raise ValueError(f"{directory} was written by {run['command']}; expected an output directory of analyze.swap")
    settings: Mapping[str, Any] = run["settings"]
    if settings["model_fingerprint"] != reader.run["settings"]["model_fingerprint"]:
        raise ValueError(
            f"{directory} is a swap of {settings['model']}, which is not the model of {reader.label} "
            f"({reader.model}); name the swap of that model"
        )
    if MODE not in settings["modes"]:
        raise ValueError(
            f"{directory} has the modes {', '.join(settings['modes'])}; expected a swap with --mode {MODE}"
        )
    return settings


def _pairs(folders: Sequence[str], runs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], tuple[Path, Pair]]:
    """Returns the pairs in these folders by set and id, under the names that the swaps give the sets."""
    names: dict[str, str] = {}
    for model, settings in runs.items():
        for name, fingerprint in settings["pairs"].items():
            if names.setdefault(name, fingerprint) != fingerprint:
                raise ValueError(
                    f"--swap: the set {name!r} of {model} has other pairs than another model's; use one set"
                )
    by_fingerprint = {fingerprint: name for name, fingerprint in names.items()}
    found: dict[tuple[str, str], tuple[Path, Pair]] = {}
    for directory in [place for folder in folders for place in find_sets(Path(folder))]:
        name = by_fingerprint.pop(pairs_fingerprint(directory), None)
        if name is None:
            raise ValueError(f"--pairs {directory}: these pairs are not those of the swaps ({', '.join(names)})")
        found.update({(name, pair.id): (directory, pair) for pair in read_pairs(directory)})
    if by_fingerprint:
        raise ValueError(
            f"--swap needs the pictures of its pairs; name the folder of {', '.join(by_fingerprint.values())} with "
            "--pairs"
        )
    return found


def _answers(model: str, record: Record) -> SwappedAnswers:
    return SwappedAnswers(
        model=model,
        plain_target=record["plain_target"],
        plain_source=record["plain_source"],
        answers=tuple(_whose(variant["scores"]) for variant in record["variants"]),
        replies=tuple(variant["response"] for variant in record["variants"]),
    )


def _whose(scores: Mapping[str, bool | None]) -> str:
    if scores["moved_to_source"]:
        return SOURCE
    return TARGET if scores["kept_target"] else OTHER


def turning_points(swaps: Sequence[SwappedPair]) -> list[dict[str, Any]]:
    """Returns a row per model: pairs answered right without a swap, and the median of their last layer that moves."""
    rows = []
    for number, model in enumerate(own.model for own in (swaps[0].answers if swaps else ())):
        right = [pair.answers[number] for pair in swaps if pair.answers[number].answers[-1] == TARGET]
        moved = [own.last_moved for own in right if own.last_moved is not None]
        rows.append(
            {
                "model": model, "num_pairs": len(swaps), "num_right": len(right), "num_moved": len(moved),
                "median": f"{statistics.median(moved):g}" if moved else "–",
            }
        )  # fmt: skip
    return rows


def _largest(one: SwappedPair) -> int:
    return max(-1 if own.last_moved is None else own.last_moved for own in one.answers)
