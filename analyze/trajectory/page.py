"""The page of a trajectory analysis: answers, figures over steps and depth, tables."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.trajectory.figures import labels, rows_of, run_words
from analyze.trajectory.summary import sentences
from eval.display.formatting import MINUS, NOTHING, percent
from eval.display.page import page_environment

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS = {
    "maps": "Decoder layers (from bottom to top) over training steps, a row per run. Reached: the part of the final "
    "change that a step's change has along it. Rank-1 share: the energy of the leading singular value of each matrix's "
    "change, summed over the layer's matrices. White: the layer did not change.",
    "depth": "When half of each layer's final change was reached, how linear in steps its coefficient along the "
    "leading direction is, and which share of the energy of all kept changes lies along that direction.",
    "blocks": "Norm of the change of every block and region over the steps.",
}


def render(tables: "dict[str, pd.DataFrame]", figures: Path, *, rank: int) -> str:
    """Returns the page as HTML, without links to other files.

    Args:
        tables: those of `tables.py`.
        figures: the folder of the figures.
        rank: number of the weights' own leading directions that were compared.
    """
    lines = tables["lines"]
    return (
        page_environment(TEMPLATES)
        .get_template("trajectory.html.j2")
        .render(
            num_runs=len(labels(lines)),
            answers=sentences(tables, rank=rank),
            figures=[_figure(figures / f"{name}.png", caption) for name, caption in CAPTIONS.items()],
            rank=rank,
            with_sft=bool(tables["blocks"]["sft_conflict_frac"].notna().any()),
            runs=[_run(tables, run) for run in labels(lines)],
        )
    )


def _figure(path: Path, caption: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"source": source, "caption": caption, "alt": "", "drawing": None}


def _run(tables: "dict[str, pd.DataFrame]", run: tuple[Any, Any]) -> dict[str, Any]:
    lines = rows_of(tables["lines"], run)
    last = int(lines["last_step"].iloc[0])
    finals = {name: own[own["step"] == last] for name in ("blocks", "layers") for own in [rows_of(tables[name], run)]}
    return {
        "name": run_words(run),
        "last": last,
        "blocks": [
            _row(line, _final(finals["blocks"], "block", line["block"]), line["block"])
            for _, line in lines[lines["level"].isin(["block", "all"])].iterrows()
        ],
        "layers": [
            _row(line, _final(finals["layers"], "layer", line["layer"]), f"layer {int(line['layer'])}")
            for _, line in lines[lines["level"] == "layer"].iterrows()
        ],
    }


def _final(table: "pd.DataFrame", column: str, value: Any) -> Any:
    return table[table[column] == value].iloc[0]


def _row(line: Any, final: Any, place: str) -> dict[str, str]:
    return {
        "place": place,
        "energy": _number(final["energy"]),
        "relative": _number(100 * final["relative_energy"]),
        "changed": percent(final["changed_frac"]),
        "rank1": percent(final["rank1_share"]),
        "half": _fixed(line["half_step"], 1),
        "line": percent(line["trajectory_rank1_share"]),
        "r2": _fixed(line["r2"], 2),
        "left": _beside(final["left_share"], final["left_random"]),
        "right": _beside(final["right_share"], final["right_random"]),
        "conflict": percent(final["sft_conflict_frac"]),
        "cosine": _fixed(final["sft_cosine"], 2),
    }


def _number(value: float) -> str:
    return NOTHING if value != value else f"{value:.3g}".replace("-", MINUS)


def _fixed(value: float, digits: int) -> str:
    return NOTHING if value != value else f"{value:.{digits}f}".replace("-", MINUS)


def _beside(share: float, random: float) -> str:
    return NOTHING if share != share else f"{percent(share)} ({percent(random)})"
