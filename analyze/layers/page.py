"""The page of a layer sweep: answers, the figure over depth, and the tables."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.layers.plan import Sweep
from analyze.layers.summary import answers, claims, correlations, place_words, verdict
from eval.compare.scope import is_significant
from eval.display.formatting import change, format_share, listed, percent, probability
from eval.display.page import page_environment

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"


def render(
    sweep: Sweep, layers: "pd.DataFrame", agreement: "pd.DataFrame", middle: "pd.DataFrame", figure: Path
) -> str:
    """Returns the page as HTML, without links to other files."""
    source = f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}" if figure.is_file() else None
    return (
        page_environment(TEMPLATES)
        .get_template("layers.html.j2")
        .render(
            study=str(sweep.directory),
            missing=listed(sweep.missing),
            num_arms=len(sweep.places),
            num_seeds=int(layers["num_seeds"].max()) if len(layers) else 0,
            answers=answers(layers),
            claims=claims(middle),
            correlations=correlations(agreement),
            figure={"source": source, "caption": _caption(layers), "alt": "", "drawing": None} if source else None,
            directions=[
                {"name": str(name), "rows": [_row(row) for _, row in own.iterrows()]}
                for name, own in layers.groupby("direction", sort=False)
            ],
            agreement=[_agreement(row) for _, row in agreement.iterrows()],
            middle=[_middle(row) for _, row in middle.iterrows()],
        )
    )


def _caption(layers: "pd.DataFrame") -> str:
    seeds = f"{int(layers['num_seeds'].min())} seeds or more" if len(layers) else "no seeds"
    return (
        f"Share of the gain of full over sft that is kept if one place trains alone (left) or lost if it is frozen "
        f"(right), with Fieller's 95 % intervals over {seeds} an arm; not corrected for the number of places. Long "
        "intervals are cut off. Bars: where full wrote."
    )


def _row(row: Any) -> dict[str, Any]:
    return {
        "ability": row["ability"], "place": place_words(row), "block": row["block"], "n": int(row["n"]),
        "seeds": int(row["num_seeds"]), "share": format_share(row["share"], row["share_low"], row["share_high"]),
        "against": row["against"], "change": change(row["difference"], row["low"], row["high"]),
        "p_holm": probability(row["p_holm"]), "strong": is_significant(row), "energy": percent(row["energy_share"]),
    }  # fmt: skip


def _agreement(row: Any) -> dict[str, Any]:
    return {
        "part": row["part"], "first": row["first"], "second": row["second"], "n": int(row["num_places"]),
        "rho": f"{row['rho']:.2f}".replace("-", "−"), "p": probability(row["p"]), "p_holm": probability(row["p_holm"]),
    }  # fmt: skip


def _middle(row: Any) -> dict[str, Any]:
    return {
        "ability": row["ability"], "direction": row["direction"], "n": int(row["n"]), "seeds": int(row["num_seeds"]),
        "change": change(row["difference"], row["low"], row["high"]), "p_holm": probability(row["p_holm"]),
        "verdict": verdict(row),
    }  # fmt: skip
