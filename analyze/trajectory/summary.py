"""What does a trajectory say, in sentences? The same for the terminal and for the page."""

import math
from typing import TYPE_CHECKING, Any

from analyze.trajectory.figures import labels, rows_of, run_words
from eval.display.formatting import percent

if TYPE_CHECKING:
    import pandas as pd


def sentences(tables: "dict[str, pd.DataFrame]", *, rank: int) -> list[str]:
    """Returns two to four sentences per run.

    Args:
        tables: those of `tables.py`.
        rank: number of the weights' own leading directions that were compared.
    """
    found = []
    for run in labels(tables["lines"]):
        lines = rows_of(tables["lines"], run)
        whole = lines[lines["level"] == "all"].iloc[0]
        blocks = rows_of(tables["blocks"], run)
        final = blocks[(blocks["block"] == "all")].sort_values("step").iloc[-1]
        name, last = run_words(run), int(whole["last_step"])
        if not final["energy"] > 0:
            found.append(f"{name}: no weight changed in {int(whole['num_steps'])} kept steps.")
            continue
        linear = f"; along it, steps explain R² = {whole['r2']:.2f}" if not math.isnan(whole["r2"]) else ""
        found.append(
            f"{name}: {_percent(whole['trajectory_rank1_share'])} % of the energy of {int(whole['num_steps'])} kept "
            f"changes lies along one direction{linear}. Half of the final change was reached at step "
            f"{whole['half_step']:.1f} of {last}{_by_depth(lines)}."
        )
        found.append(
            f"{name}: at step {last}, {_percent(final['changed_frac'])} % of all elements differ from the start; the "
            f"leading singular value of each matrix's change holds {_percent(final['rank1_share'])} % of its energy."
        )
        if rank and not math.isnan(final["left_share"]):
            found.append(
                f"{name}: of the final change, {_percent(final['left_share'])} % (left) and "
                f"{_percent(final['right_share'])} % (right) lie in the {rank} leading singular directions of the "
                f"start's weights; a random change has {_percent(final['left_random'])} % and "
                f"{_percent(final['right_random'])} %."
            )
        if not math.isnan(final["sft_conflict_frac"]):
            found.append(
                f"{name}: SFT and this run both changed {_percent(final['sft_both_frac'])} % of the elements; in "
                f"{_percent(final['sft_conflict_frac'])} % of these they moved in opposite directions (50 % if they "
                f"were unrelated). Cosine of the two changes: {_signed(final['sft_cosine'])}."
            )
    return found


def _by_depth(lines: "pd.DataFrame") -> str:
    layers = lines[(lines["level"] == "layer") & lines["half_step"].notna()]
    if layers["layer"].nunique() < 2:
        return ""
    first, last = (layers.sort_values("half_step").iloc[place] for place in (0, -1))
    return (
        f": first in decoder layer {int(first['layer'])} (step {first['half_step']:.1f}), last in layer "
        f"{int(last['layer'])} (step {last['half_step']:.1f})"
    )


def _percent(value: Any) -> str:
    return percent(float(value))


def _signed(value: Any) -> str:
    return f"{float(value):.2f}".replace("-", "−")
