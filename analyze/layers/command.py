"""Which single layers suffice for the gain, and which are necessary? A study's arms of single layers, over depth.

    python -m train.necessity --config configs/pocket/layers.yaml
    python -m analyze.layers outputs/pocket_layers --output-dir outputs/pocket_layers/layers

The study has the arms `full` and some of `each-only`, `each-freeze`, `each-only.attn`, `only-llm:4` and the like
(`train/freezing/arms.py`). Read are its evaluations, its `comparison.csv` and the weight changes of `full`; nothing is
run. An arm without evaluation is named as missing.

    layers.csv      ability × place: share of full's gain kept (trained alone) or lost (frozen), size of full's change
    agreement.csv   rank correlations over depth, with exact permutation tests up to eight places
    middle.csv      middle layers against the others (the claim of arXiv 2607.01232)
    layers.html     the page to read; figures/layers.png
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.layers.figures import draw_all
from analyze.layers.page import render
from analyze.layers.plan import FULL, Sweep, read_sweep
from analyze.layers.summary import summary
from analyze.layers.tables import agreement_table, energy_shares, layer_table, middle_table
from eval.compare.alike import check_alike
from eval.compare.scope import read_comparison
from eval.replies.outcomes import outcomes
from eval.statistics.pairing import collect_groups
from models.layout import layout_of
from tracking.command import parse_arguments
from tracking.product import write_text
from tracking.records import read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

COMPARISON = "comparison.csv"
MATRICES = Path("deltas") / "matrices.csv"
RECORDS = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class LayersArguments:
    """The study."""

    study: str = field(
        metadata={"help": "output directory of train.necessity with arms of single layers", "positional": True,
                  "metavar": "STUDY"}
    )  # fmt: skip
    output_dir: str = field(metadata={"help": "where tables, figure, page and run.json are written"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def write_layers(sweep: Sweep, output_dir: Path, *, overwrite: bool = False) -> list[str]:
    """Writes the tables, the figure and the page; returns the lines to print."""
    comparison = read_comparison(_comparison_file(sweep.directory))
    check_alike(sweep.entries)
    settings = {
        "study": str(sweep.directory.resolve()),
        "models": {entry.label: str(entry.directory) for entry in sweep.entries},
        "comparison": comparison.shape,
    }
    with open_run(output_dir, command="analyze.layers", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return _read_summary(output_dir)
        records = {entry.label: outcomes(read_records(entry.directory / RECORDS)) for entry in sweep.entries}
        layers = layer_table(sweep, comparison, _energies(sweep.directory))
        agreement, middle = agreement_table(layers), middle_table(sweep, collect_groups(sweep.entries, records))
        for name, table in (("layers", layers), ("agreement", agreement), ("middle", middle)):
            write_table(output_dir / f"{name}.csv", table)
        draw_all(layers, sweep.partition, output_dir / "figures")
        page = render(sweep, layers, agreement, middle, output_dir / "figures" / "layers.png")
        write_text(output_dir / "layers.html", page)
    return summary(layers, agreement, middle)


def _read_summary(output_dir: Path) -> list[str]:
    layers, agreement, middle = (read_table(output_dir / f"{name}.csv") for name in ("layers", "agreement", "middle"))
    return summary(layers, agreement, middle)


def _comparison_file(study: Path) -> Path:
    for place in (study / COMPARISON, study / "comparison" / COMPARISON):
        if place.is_file():
            return place
    raise ValueError(f"{study} has no {COMPARISON}; run train.necessity to its end, or with --collect")


def _energies(study: Path) -> "pd.Series[float] | None":
    if not (study / MATRICES).is_file():
        return None
    final = next(iter(sorted((study / "arms").glob(f"{FULL}-seed*/final"))))
    return energy_shares(read_table(study / MATRICES), layout_of(final))


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, LayersArguments, description=__doc__, check_inputs=True)
    sweep = read_sweep(Path(arguments.study))
    output_dir = Path(arguments.output_dir)
    print(*write_layers(sweep, output_dir, overwrite=arguments.overwrite), sep="\n")
    if sweep.missing:
        print(f"not evaluated yet: {', '.join(sweep.missing)}")
    print(f"layers: {output_dir / 'layers.csv'}, to read: {output_dir / 'layers.html'}")
