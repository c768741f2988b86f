"""Does a comparison find differences where there are none? Compares the seeds of one arm with each other.

    python -m eval.splits full@0=outputs/eval/full-seed0 … full@3=outputs/eval/full-seed3 --output-dir outputs/splits

The seeds of an arm are divided into two halves, in every way that leaves at least two seeds on each side, and the
halves are compared as `eval.compare` compares two arms. Both halves were trained alike, so every significant difference
is a false alarm. A sound test at the 5 % level claims a difference in about 5 % of all splits. The splits of one arm
share its seeds, so their number says little: only many arms, or arms with many seeds, give a precise share.

`splits.csv` has one row per split, task and ability, `summary.csv` one per arm. p-values are Holm-corrected over the
abilities of a split.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.compare.alike import RECORDS_FILE, check_alike, identify
from eval.compare.scope import LEVEL
from eval.replies.outcomes import Outcome, outcomes
from eval.statistics.differences import POOLED, compare_group
from eval.statistics.intervals import holm
from eval.statistics.pairing import ACCURACY, ENTRIES_ARGUMENT, Entry, collect_groups, parse_entry
from tracking.command import parse_arguments, run_command
from tracking.progress import progress
from tracking.records import read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import format_columns, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

LEAST_SEEDS = 2
"""Seeds on each side of a split; with one there is no estimate of the spread between seeds."""
DRAWING_SEED = 20_261_127
FIRST, SECOND = "first", "second"
COLUMNS = (
    "arm", "first", "second", "task", "ability", "n", "difference", "standard_error", "low", "high", "p", "p_holm",
    "claimed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitArguments:
    """The evaluations, and how many splits of each arm are compared."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    output_dir: str = field(default="outputs/splits", metadata={"help": "where the tables and run.json are written"})
    max_splits: int = field(
        default=200,
        metadata={"help": "most splits of one arm; if there are more, so many are drawn at random"},
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if self.max_splits < 1:
            raise ValueError(f"max_splits is {self.max_splits}; it must be at least 1")


Split = tuple[tuple[int, ...], tuple[int, ...]]
"""The seeds of the two halves."""


def splits_of(seeds: Sequence[int], *, most: int) -> list[Split]:
    """Returns the divisions of the seeds into two halves, each once: all, or `most` of them drawn at random.

    The smaller half comes first; of two equal ones, the half with the first seed.
    """
    sizes = range(LEAST_SEEDS, len(seeds) // 2 + 1)
    number = sum(comb(len(seeds), size) // (2 if 2 * size == len(seeds) else 1) for size in sizes)
    if number <= most:
        return list(_all_splits(seeds))
    rng, drawn = random.Random(DRAWING_SEED), dict[Split, None]()
    weights = [comb(len(seeds), size) / (2 if 2 * size == len(seeds) else 1) for size in sizes]
    while len(drawn) < most:
        (size,) = rng.choices(sizes, weights)
        half = set(rng.sample(list(seeds), size))
        drawn[_split(seeds, half)] = None
    return list(drawn)


def _all_splits(seeds: Sequence[int]) -> Iterator[Split]:
    for size in range(LEAST_SEEDS, len(seeds) // 2 + 1):
        for half in combinations(seeds, size):
            if 2 * size < len(seeds) or seeds[0] in half:
                yield _split(seeds, set(half))


def _split(seeds: Sequence[int], half: set[int]) -> Split:
    first, second = (tuple(seed for seed in seeds if (seed in half) == own) for own in (True, False))
    return (second, first) if len(first) == len(second) and seeds[0] not in half else (first, second)


def arms_of(entries: Sequence[Entry]) -> dict[str, dict[int, Entry]]:
    """Returns the arms whose seeds can be split: name -> seed -> evaluation.

    Raises:
        ValueError: if there is none.
    """
    arms: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        if entry.seed is not None:
            arms.setdefault(entry.name, {})[entry.seed] = entry
    usable = {name: dict(sorted(own.items())) for name, own in arms.items() if len(own) >= 2 * LEAST_SEEDS}
    if not usable:
        counts = ", ".join(f"{name}: {len(own)}" for name, own in arms.items()) or "no model has a seed"
        raise ValueError(
            f"no arm has {2 * LEAST_SEEDS} seeds ({counts}); expected evaluations of four seeds or more of one arm, "
            "as NAME@SEED=DIR"
        )
    return usable


def compare_split(
    arm: Mapping[int, Entry], found: Mapping[str, Sequence[Outcome]], split: Split
) -> list[dict[str, object]]:
    """Compares the two halves of an arm; returns one row per task and ability.

    Args:
        arm: seed -> evaluation.
        found: label of an evaluation -> its outcomes.
        split: the seeds of both halves.
    """
    renamed = [
        (Entry(name, number, arm[seed].directory), found[arm[seed].label])
        for name, seeds in zip((FIRST, SECOND), split, strict=True)
        for number, seed in enumerate(seeds)
    ]
    groups = collect_groups([entry for entry, _ in renamed], {entry.label: own for entry, own in renamed})
    rows = [
        row
        for group in groups
        for row in compare_group(group, [ACCURACY], baseline=SECOND, reference=None)
        if row["seed"] == POOLED and row["n"]
    ]
    corrected = holm(np.array([row["p"] for row in rows], float))
    halves = {name: " ".join(map(str, seeds)) for name, seeds in zip((FIRST, SECOND), split, strict=True)}
    return [
        {**row, **halves, "arm": next(iter(arm.values())).name, "p_holm": p, "claimed": bool(p < LEVEL)}
        for row, p in zip(rows, corrected, strict=True)
    ]


def compare_all(entries: Sequence[Entry], *, max_splits: int) -> "pd.DataFrame":
    """Compares the halves of every arm with at least four seeds.

    Returns:
        One row per split, task and ability.

    Raises:
        ValueError: if the models were not evaluated alike, or no arm has four seeds.
    """
    import pandas as pd

    arms = arms_of(entries)
    check_alike([entry for own in arms.values() for entry in own.values()])
    tasks = [(own, split) for own in arms.values() for split in splits_of(list(own), most=max_splits)]
    found = {
        entry.label: outcomes(read_records(entry.directory / RECORDS_FILE))
        for own in arms.values()
        for entry in own.values()
    }
    compared = progress(tasks, label="comparing halves", total=len(tasks), unit="split")
    rows = [row for own, split in compared for row in compare_split(own, found, split)]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def summarise(table: "pd.DataFrame") -> "pd.DataFrame":
    """Returns per arm, and for all arms together, the splits and those in which a difference is claimed."""
    import pandas as pd

    by_split = table.groupby(["arm", FIRST, SECOND], sort=False)["claimed"].any().reset_index()
    rows = [
        {"arm": arm, "num_splits": len(own), "num_claimed": int(own["claimed"].sum())}
        for arm, own in [*by_split.groupby("arm", sort=False), ("all", by_split)]
    ]
    summary = pd.DataFrame(rows)
    summary["claimed_frac"] = summary["num_claimed"] / summary["num_splits"]
    return summary


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SplitArguments, description=__doc__, check_inputs=True)
    output_dir, entries = Path(arguments.output_dir), [parse_entry(text) for text in arguments.models]
    arms_of(entries)
    check_alike(entries)
    settings = {
        **identify(entries),
        "max_splits": arguments.max_splits,
    }
    with open_run(output_dir, command="eval.splits", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            table = compare_all(entries, max_splits=arguments.max_splits)
            write_table(output_dir / "splits.csv", table)
            write_table(output_dir / "summary.csv", summarise(table))
    print("\n".join(describe(output_dir)))


def describe(output_dir: Path) -> list[str]:
    """Returns the answer, a line per arm, and where the rows are."""
    summary = read_table(output_dir / "summary.csv")
    whole, arms = summary.iloc[-1], summary.iloc[:-1]
    rows = [("arm", "splits", "claimed", "share")]
    rows += [
        (row["arm"], str(row["num_splits"]), str(row["num_claimed"]), f"{100 * row['claimed_frac']:.1f} %")
        for _, row in arms.iterrows()
    ]
    return [
        f"A difference is claimed in {whole['num_claimed']} of {whole['num_splits']} splits "
        f"({100 * whole['claimed_frac']:.1f} %) of {len(arms)} arm{'s' if len(arms) > 1 else ''}; all of them false.",
        *format_columns(rows, right=(1, 2, 3)),
        f"splits: {output_dir / 'splits.csv'}",
    ]


if __name__ == "__main__":
    run_command(main)
