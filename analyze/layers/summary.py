"""What does a layer sweep say, in sentences? The same for the terminal and for the page."""

from typing import TYPE_CHECKING, Any

from analyze.layers.plan import FULL, LAYER, NECESSITY, START, SUFFICIENCY
from eval.compare.scope import LEVEL, counted_tests, is_significant
from eval.display.formatting import change, format_share, listed, probability

if TYPE_CHECKING:
    import pandas as pd

MOST = 0.5
NUM_NAMED = 6
PART_WORDS = {LAYER: "layer", "attn": "layer's attention", "mlp": "layer's MLP"}
CLAIM = {
    SUFFICIENCY: "a middle layer that trains alone gains more than another layer",
    NECESSITY: "freezing a middle layer costs more than freezing another layer",
}


def place_words(row: Any) -> str:
    """Returns `4`, `4.attn` or `0-2`."""
    layers = f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}-{row['last']}"
    return layers if row["part"] == LAYER else f"{layers}.{row['part']}"


def answers(layers: "pd.DataFrame") -> list[str]:
    """Returns a sentence per ability and direction: which places keep, or cost, more than half of the gain."""
    found = []
    for (task, ability), own in layers.groupby(["task", "ability"], sort=False):
        where = f"{ability} ({task})" if layers["task"].nunique() > 1 else str(ability)
        if own["share"].isna().all():
            found.append(f"{where}: undecided. {FULL} has no significant gain over {START}, so no share is defined.")
            continue
        for direction, rows in own.groupby("direction", sort=False):
            found.append(f"{where}: {_answer(rows, str(direction))}")
    return found


def _answer(rows: "pd.DataFrame", direction: str) -> str:
    known = rows[rows["share"].notna()]
    most = known[known["share_low"] > MOST]
    least = known[known["share_high"] < MOST]
    unclear = len(known) - len(most) - len(least)
    if direction == SUFFICIENCY:
        words = ("suffice alone for more than half of the gain", "give less than half of it")
    else:
        words = ("cost more than half of the gain if frozen", "cost less than half of it")
    text = f"{len(most)} of {len(known)} places {words[0]}{_named(most)}; {len(least)} {words[1]}"
    text += f"; for {unclear} the interval has both" if unclear else ""
    tested = rows[[is_significant(row) for _, row in rows.iterrows()]]
    better = int((tested["difference"] > 0).sum())
    worse = len(tested) - better
    against = rows["against"].iloc[0]
    said = [f"{number} {word} {against}" for number, word in ((better, "above"), (worse, "below")) if number]
    tests = counted_tests(rows["num_tests"].max())
    return f"{text}. Significantly different in accuracy: {listed(said) or f'none from {against}'} ({tests}, Holm)."


def _named(rows: "pd.DataFrame") -> str:
    if rows.empty:
        return ""
    best = rows.sort_values("share", ascending=False).head(NUM_NAMED)
    more = f" and {len(rows) - NUM_NAMED} more" if len(rows) > NUM_NAMED else ""
    shares = [
        f"{'layer' if row['first'] == row['last'] else 'layers'} {place_words(row)}: "
        f"{format_share(row['share'], row['share_low'], row['share_high'])}"
        for _, row in best.iterrows()
    ]
    return f" ({', '.join(shares)}{more})"


def verdict(row: Any) -> str:
    """Says whether a row of `middle.csv` supports the claim of arXiv 2607.01232, after correction."""
    if row["p_holm"] < LEVEL:
        return "supported" if row["difference"] > 0 else "contradicted"
    return "undecided"


def claims(middle: "pd.DataFrame") -> list[str]:
    """Returns a sentence per row of `middle.csv`."""
    return [
        f"{row['ability']}: that {CLAIM[row['direction']]} is {verdict(row)} "
        f"({change(row['difference'], row['low'], row['high'])}, corrected p = {probability(row['p_holm'])}, "
        f"n = {row['n']}, {row['num_seeds']} seeds)."
        for _, row in middle.iterrows()
    ]


def correlations(agreement: "pd.DataFrame") -> list[str]:
    """Returns a sentence: which curves over depth agree after correction."""
    if agreement.empty:
        return ["Rank correlations over depth: none, as no two curves have four places in common."]
    tested = agreement[agreement["p_holm"].notna()]
    sure = tested[tested["p_holm"] < LEVEL]
    named = [
        f"{row['first']} with {row['second']} ({PART_WORDS[row['part']]}, ρ = {row['rho']:.2f}, "
        f"n = {row['num_places']})"
        for _, row in sure.iterrows()
    ]
    return [
        f"Rank correlations over depth: {len(sure)} of {len(tested)} are significant after correction"
        f"{': ' + listed(named) if named else ''}."
    ]


def summary(layers: "pd.DataFrame", agreement: "pd.DataFrame", middle: "pd.DataFrame") -> list[str]:
    """Returns the lines that the command prints."""
    return [*answers(layers), *claims(middle), *correlations(agreement)]
