"""The page of a sweep of transplants: answers, figures over depth, the prediction of trained arms, and the tables."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.transplant.summary import answers, predictions, rho_words
from eval.compare.scope import is_significant
from eval.display.formatting import change, format_share, listed, probability
from eval.display.page import page_environment

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"


def render(
    start: str,
    table: "pd.DataFrame",
    scores: "pd.DataFrame",
    controls: "pd.DataFrame",
    prediction: "pd.DataFrame | None",
    agreement: "pd.DataFrame | None",
    figures: Mapping[str, Path],
) -> str:
    """Returns the page as HTML, without links to other files.

    Args:
        figures: caption -> file.
    """
    return (
        page_environment(TEMPLATES)
        .get_template("transplants.html.j2")
        .render(
            start=start,
            arms=listed(list(dict.fromkeys(table["arm"]))),
            num_units=table["unit"].nunique(),
            alphas=listed([f"{alpha:g}" for alpha in sorted(set(table["alpha"]))]),
            unchanged=listed(_unchanged(table)),
            answers=answers(table),
            predictions=predictions(agreement),
            figures=[_figure(caption, path) for caption, path in figures.items()],
            scores=[_score(row) for _, row in scores.iterrows()],
            sections=[
                {"name": f"{arm}: {direction}", "anchor": f"{arm}-{direction}",
                 "rows": [_row(row) for _, row in own.iterrows()]}
                for (arm, direction), own in table.groupby(["arm", "direction"], sort=False)
            ],
            prediction=None if prediction is None else [_predicted(row) for _, row in prediction.iterrows()],
            agreement=None if agreement is None else [_agreement(row) for _, row in agreement.iterrows()],
            controls=[dict(row) for _, row in controls.iterrows()],
        )
    )  # fmt: skip


def _unchanged(table: "pd.DataFrame") -> list[str]:
    """Returns the units that END left as they are in START."""
    kept = table[~table["changed"].astype(bool)]
    return list(dict.fromkeys(f"{row['unit']} of {row['arm']}" for _, row in kept.iterrows()))


def _figure(caption: str, path: Path) -> dict[str, Any]:
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"source": source, "caption": caption, "alt": "", "drawing": None}


def _score(row: Any) -> dict[str, Any]:
    return {
        "model": row["model"], "task": row["task"], "ability": row["ability"], "n": int(row["n"]),
        "accuracy": format_share(row["accuracy"], row["low"], row["high"]),
    }  # fmt: skip


def _row(row: Any) -> dict[str, Any]:
    return {
        "ability": row["ability"], "unit": row["unit"], "block": row["block"] if isinstance(row["block"], str) else "",
        "alpha": f"{row['alpha']:g}", "n": int(row["n"]), "seeds": int(row["num_seeds"]),
        "accuracy": format_share(row["accuracy"]), "change": change(row["difference"], row["low"], row["high"]),
        "strong": is_significant(row), "p_holm": probability(row["p_holm"]),
        "share": format_share(row["share"], row["share_low"], row["share_high"]),
    }  # fmt: skip


def _predicted(row: Any) -> dict[str, Any]:
    return {
        "ability": row["ability"], "unit": row["unit"], "alpha": f"{row['alpha']:g}", "trained_arm": row["trained_arm"],
        "arm": row["arm"], "change": change(row["difference"], row["low"], row["high"]),
        "trained": change(row["trained_difference"], row["trained_low"], row["trained_high"]),
        "seeds": int(row["trained_seeds"]),
    }  # fmt: skip


def _agreement(row: Any) -> dict[str, Any]:
    return {
        "ability": row["ability"], "arm": row["arm"], "direction": row["direction"], "part": row["part"],
        "alpha": f"{row['alpha']:g}", "n": int(row["num_places"]),
        "rho": rho_words(row), "p": probability(row["p"]),
        "error": f"{100 * row['mean_error']:.1f}",
    }  # fmt: skip
