"""Does one model do better than another? Paired tests on identical samples, corrected, with the share of gain kept.

    python -m eval.compare sft=outputs/eval/sft full@0=… full@1=… freeze-mid@0=… --baseline sft --reference full \\
        --output-dir outputs/comparison

`NAME=DIR` is a model that stands once, `NAME@SEED=DIR` one that was trained with several seeds. Every model is compared
with the baseline and with the reference: per seed by the exact McNemar test, pooled by a bootstrap crossed over seeds
and samples. P-values are Holm-corrected within their family (the pooled ones of one metric; the ones per seed).

*Gain kept* = (arm - baseline) / (reference - baseline), given only where the interval of the denominator excludes zero
and there is a gain, not a loss.
"""

import argparse
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from eval.grading import CORRECT, UNSCORED
from eval.run import score_table
from eval.statistics import (
    CrossedDraws,
    PairedDifference,
    bootstrap_p,
    crossed_difference,
    draw_crossed,
    gain_kept,
    holm,
    mcnemar,
)
from tracking.command import run_command
from tracking.records import Record, read_records
from tracking.run import open_run, read_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("accuracy", "accuracy where both are well-formed")
"""The second compares only samples that both models answered in the asked-for form, so that form alone cannot win."""
PER_MODEL_SETTINGS = ("model", "model_fingerprint")
"""Settings of an evaluation in which the models of a comparison may differ."""
RESAMPLING_SEED = 20_260_212


@dataclass(frozen=True)
class Entry:
    """One evaluated model: a name, a training seed where it has one, and its records."""

    name: str
    seed: int | None
    directory: Path

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name}@{self.seed}"


@dataclass(frozen=True)
class Answers:
    """One model's answers to one ability, a row a seed, in one order of samples."""

    seeds: tuple[int | None, ...]
    correct: Float[np.ndarray, "seeds n"]
    scored: Bool[np.ndarray, "seeds n"]
    well_formed: Bool[np.ndarray, "seeds n"]

    def rows_of(self, seeds: Sequence[int | None]) -> "Answers":
        """Returns the rows of these seeds; a model that stands once gives its row to each."""
        rows = [0 if self.seeds == (None,) else self.seeds.index(seed) for seed in seeds]
        return Answers(tuple(seeds), self.correct[rows], self.scored[rows], self.well_formed[rows])


def parse_entry(text: str) -> Entry:
    """Parses `NAME=DIR` or `NAME@SEED=DIR`."""
    label, separator, directory = text.partition("=")
    name, at, seed = label.partition("@")
    if not separator or not name or not directory or (at and not seed.isdigit()):
        raise ValueError(f"{text!r} is no NAME=DIR or NAME@SEED=DIR, such as full@0=outputs/eval/full-seed0")
    return Entry(name, int(seed) if seed else None, Path(directory))


def check_alike(entries: Sequence[Entry]) -> None:
    """Refuses a comparison of models that were not asked the same in the same way."""
    repeated = [
        label for label, group in itertools.groupby(sorted(entry.label for entry in entries)) if len(list(group)) > 1
    ]
    if repeated:
        raise ValueError(f"model {repeated[0]!r} is named twice; expected each model and seed once")
    settings = {}
    for entry in entries:
        run = read_run(entry.directory)
        if run["status"] != "finished":
            raise ValueError(f"{entry.directory} is {run['status']}; run its evaluation to the end first")
        settings[entry.label] = {key: value for key, value in run["settings"].items() if key not in PER_MODEL_SETTINGS}
    first, *others = settings
    for other in others:
        for key in settings[first]:
            if settings[first][key] != settings[other].get(key):
                raise ValueError(
                    f"{first} and {other} were evaluated with different {key}: {settings[first][key]!r} and "
                    f"{settings[other].get(key)!r}; evaluate both alike"
                )


def collect_answers(entries: Sequence[Entry], records: dict[str, list[Record]], ability: str) -> dict[str, Answers]:
    """Returns each model's answers to one ability, samples in the same order for all."""
    by_label = {
        label: {record["key"]: record for record in rows if record["ability"] == ability}
        for label, rows in records.items()
    }
    keys = sorted(next(iter(by_label.values())))
    for label, rows in by_label.items():
        if sorted(rows) != keys:
            raise ValueError(f"{label} and {entries[0].label} answered different samples of {ability}")
    answers = {}
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        if len(own) > 1 and any(entry.seed is None for entry in own):
            raise ValueError(f"{name!r} stands with and without a seed; expected NAME@SEED throughout")
        replies = [[by_label[entry.label][key] for key in keys] for entry in own]

        def matrix(test: str, value: object, replies: list[list[Record]] = replies) -> Bool[np.ndarray, "seeds n"]:
            return np.array([[record[test] == value for record in row] for row in replies])

        answers[name] = Answers(
            tuple(entry.seed for entry in own),
            matrix("status", CORRECT).astype(float),
            ~matrix("status", UNSCORED),
            matrix("well_formed", True),
        )
    return answers


def compare_ability(
    ability: str, answers: dict[str, Answers], *, baseline: str, reference: str | None
) -> list[dict[str, object]]:
    """Returns the comparison rows of one ability: every model against the baseline and the reference."""
    rows: list[dict[str, object]] = []
    num_samples = answers[baseline].correct.shape[1]
    for metric in METRICS:
        gains: dict[str, PairedDifference] = {}
        for against in dict.fromkeys(filter(None, (baseline, reference))):
            for name in answers:
                if name == against or (against != baseline and name == baseline):
                    continue
                seeds = _common_seeds(answers[name], answers[against])
                if not seeds:
                    raise ValueError(f"{name} and {against} share no seed; train both with the same seeds")
                first, second = answers[name].rows_of(seeds), answers[against].rows_of(seeds)
                compared = first.scored & second.scored
                if metric != METRICS[0]:
                    compared &= first.well_formed & second.well_formed
                head: dict[str, object] = {"ability": ability, "metric": metric, "arm": name, "against": against}
                if not compared.any():
                    rows.append({**head, "seed": "pooled", "n": 0, "family": f"{metric}, pooled"})
                    continue
                draws = _draws(num_samples, len(seeds))
                difference = crossed_difference(first.correct, second.correct, compared, draws)
                if against == baseline:
                    gains[name] = difference
                interval = difference.interval
                rows.append(
                    {
                        **head,
                        "seed": "pooled",
                        "n": difference.n,
                        "num_seeds": len(seeds),
                        "difference": difference.estimate,
                        "low": interval.low,
                        "high": interval.high,
                        "p": bootstrap_p(difference.resampled),
                        "family": f"{metric}, pooled",
                    }
                )
                rows.extend(_per_seed_rows(head, seeds, first, second, compared))
        if reference is not None and reference in gains:
            _add_gain_kept(rows, ability, metric, gains, baseline, reference)
    return rows


def _per_seed_rows(
    head: dict[str, object],
    seeds: Sequence[int | None],
    first: Answers,
    second: Answers,
    compared: Bool[np.ndarray, "seeds n"],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, seed in enumerate(seeds):
        kept = compared[index]
        right, right_against = first.correct[index][kept] > 0, second.correct[index][kept] > 0
        test = mcnemar(right, right_against)
        rows.append(
            {
                **head,
                "seed": "" if seed is None else seed,
                "n": test.n,
                "num_seeds": 1,
                "difference": (test.num_gained - test.num_lost) / test.n if test.n else float("nan"),
                "num_gained": test.num_gained,
                "num_lost": test.num_lost,
                "p": test.p,
                "family": f"{head['metric']}, per seed",
            }
        )
    return rows


def _common_seeds(first: Answers, second: Answers) -> list[int | None]:
    if first.seeds == (None,):
        return list(second.seeds)
    if second.seeds == (None,):
        return list(first.seeds)
    return [seed for seed in first.seeds if seed in second.seeds]


@functools.lru_cache(maxsize=8)
def _draws(num_samples: int, num_seeds: int) -> CrossedDraws:
    return draw_crossed(num_samples, num_seeds, seed=RESAMPLING_SEED)


def _add_gain_kept(
    rows: list[dict[str, object]],
    ability: str,
    metric: str,
    gains: dict[str, PairedDifference],
    baseline: str,
    reference: str,
) -> None:
    for row in rows:
        if (row["ability"], row["metric"], row["against"], row["seed"]) != (ability, metric, baseline, "pooled"):
            continue
        name = str(row["arm"])
        if name not in gains or gains[name].resampled.shape != gains[reference].resampled.shape:
            continue
        kept = gain_kept(gains[name], gains[reference])
        if kept is not None:
            row |= {"gain_kept": kept.estimate, "gain_kept_low": kept.low, "gain_kept_high": kept.high}


COLUMNS = (
    "ability", "metric", "arm", "against", "seed", "n", "num_seeds", "difference", "low", "high", "num_gained",
    "num_lost", "p", "p_holm", "family", "gain_kept", "gain_kept_low", "gain_kept_high",
)  # fmt: skip


def compare(entries: Sequence[Entry], *, baseline: str, reference: str | None) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Returns (scores, comparison): a row per model, seed and ability; a row per comparison."""
    import pandas as pd

    names = {entry.name for entry in entries}
    for role, name in (("baseline", baseline), ("reference", reference)):
        if name is not None and name not in names:
            raise ValueError(f"{role} {name!r} is not among the models {', '.join(sorted(names))}")
    check_alike(entries)
    records = {entry.label: read_records(entry.directory / "records.jsonl") for entry in entries}
    scores = []
    for entry in entries:
        table = score_table(records[entry.label])
        table.insert(0, "model", entry.name)
        table.insert(1, "seed", "" if entry.seed is None else entry.seed)
        scores.append(table)
    rows: list[dict[str, object]] = []
    for ability in dict.fromkeys(record["ability"] for record in records[entries[0].label]):
        answers = collect_answers(entries, records, ability)
        rows.extend(compare_ability(ability, answers, baseline=baseline, reference=reference))
    comparison = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    for family in comparison["family"].unique():
        tested = (comparison["family"] == family) & comparison["p"].notna()
        comparison.loc[tested, "p_holm"] = holm(comparison.loc[tested, "p"].to_numpy(float))
    return pd.concat(scores, ignore_index=True), comparison


def write_comparison(
    output_dir: Path, entries: Sequence[Entry], *, baseline: str, reference: str | None, overwrite: bool = False
) -> None:
    """Writes `scores.csv` and `comparison.csv` of these models into their own run directory."""
    settings = {
        "models": {entry.label: read_run(entry.directory)["settings"] for entry in entries},
        "baseline": baseline,
        "reference": reference,
    }
    with open_run(output_dir, command="eval.compare", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return
        scores, comparison = compare(entries, baseline=baseline, reference=reference)
        write_table(output_dir / "scores.csv", scores)
        write_table(output_dir / "comparison.csv", comparison)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", help="NAME=DIR or NAME@SEED=DIR, output directories of eval.run")
    parser.add_argument("--baseline", required=True, help="the model all others are compared with")
    parser.add_argument("--reference", help="a second such model, and the one whose gain is to be kept")
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, required=True, help="where scores.csv and comparison.csv are written"
    )
    parser.add_argument("--overwrite", action="store_true", help="start over")
    arguments = parser.parse_args(argv)
    write_comparison(
        arguments.output_dir,
        [parse_entry(text) for text in arguments.models],
        baseline=arguments.baseline,
        reference=arguments.reference,
        overwrite=arguments.overwrite,
    )
    print(f"comparison: {arguments.output_dir / 'comparison.csv'}")


if __name__ == "__main__":
    run_command(main)
