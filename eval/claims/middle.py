"""Do middle layers suffice? The claim of arXiv 2607.01232, judged by a layer sweep of `analyze.layers`.

The paper trains one decoder layer at a time with RL, on text alone, and finds that layers in the middle gain most. The
sweep's `middle.csv` has, per task and ability, the mean accuracy of the arms that train one middle layer less that of
the arms that train one other layer, as a paired contrast over prompts and seeds. The claim is

    supported                  if this difference is significant (corrected p below 5 %) and positive
    contradicted               if it is significant and negative
    not decidable at this n    otherwise

Rows about frozen layers (`necessity`) are another question and are not used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.claims.tables import verdict
from eval.display.formatting import interval, points, probability
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

STATEMENT = "A middle layer that trains alone gains more than another layer"
SOURCE = "arXiv 2607.01232 (there on text alone)"
SUFFICIENCY = "sufficiency"
COLUMNS = ("task", "ability", "direction", "num_middle", "num_other", "n", "num_seeds", "difference", "low", "high",
           "p", "p_holm")  # fmt: skip


def judge_middle(path: Path) -> "pd.DataFrame":
    """Returns a row per task and ability: the difference, its interval, and the verdict.

    Raises:
        ValueError: if the file is no `middle.csv`, or the sweep has no arms that train one layer.
    """
    if not path.is_file():
        raise ValueError(f"--layers {path} does not exist; expected the middle.csv that analyze.layers writes")
    table = read_table(path)
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected the middle.csv that analyze.layers writes")
    own = table[table["direction"] == SUFFICIENCY].reset_index(drop=True)
    if own.empty:
        raise ValueError(
            f"{path} has no row of the direction {SUFFICIENCY}; expected a sweep whose arms train one layer of the "
            "middle and one of another block, such as each-only"
        )
    # The claim has a direction, so a margin of equality plays no part.
    verdicts = [verdict(1, row["difference"], float("inf"), row["p_holm"]) for _, row in own.iterrows()]
    found = own[[column for column in COLUMNS if column != "direction"]]
    found.insert(0, "source", SOURCE)
    found.insert(0, "statement", STATEMENT)
    return found.assign(verdict=verdicts)


def middle_row(row: Any) -> dict[str, str]:
    """Returns a row of the table as text."""
    seeds = int(row["num_seeds"])
    about = f"{seeds} training seeds" if seeds > 1 else "the evaluated checkpoints"
    return {
        "statement": row["statement"],
        "source": row["source"],
        "verdict": row["verdict"],
        "ability": f"{row['ability']} ({row['task']})",
        "compares": f"{row['num_middle']} middle layers with {row['num_other']} others",
        "difference": points(row["difference"]),
        "interval": interval(row["low"], row["high"]),
        "p_holm": probability(row["p_holm"]),
        "about": f"n = {row['n']}, {about}",
    }


def middle_lines(table: "pd.DataFrame") -> list[str]:
    """Returns a sentence per row."""
    rows = [middle_row(row) for _, row in table.iterrows()]
    return [
        f"{row['statement']}, {row['ability']}: {row['verdict']}: {row['difference']} {row['interval']}, corrected p = "
        f"{row['p_holm']}, {row['about']}; {row['source']}"
        for row in rows
    ]
