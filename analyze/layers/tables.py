"""How much of the gain does one layer alone give, and how much is lost without it? The tables of a layer sweep.

    layers.csv       a row per ability and place: its share of full's gain, with the interval of `eval.compare`
    agreement.csv    rank correlations over depth: sufficiency with necessity, with the size of the change, and between
                     abilities
    middle.csv       the mean of the middle layers less that of the others, as a paired contrast over all arms

The share of an arm that trains one place alone is its gain kept, (arm - sft) / (full - sft). That of an arm that
freezes one place is the share lost, 1 - (arm - sft) / (full - sft). The first is the *layer contribution* of arXiv
2607.01232, except that there nothing else trains (here `always_freeze` decides about the regions).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.layers.plan import FULL, LAYER, NECESSITY, PARTS, START, SUFFICIENCY, Place, Sweep
from eval.statistics.differences import POOLED
from eval.statistics.intervals import holm
from eval.statistics.pairing import ACCURACY, Group
from eval.statistics.pooled import Term, contrast
from models.layout import Layout

if TYPE_CHECKING:
    import pandas as pd

LAYER_COLUMNS = (
    "task", "ability", "direction", "part", "first", "last", "block", "arm", "n", "num_seeds", "share", "share_low",
    "share_high", "against", "difference", "low", "high", "p", "p_holm", "num_tests", "energy_share",
)  # fmt: skip
FEWEST_RANKED = 4
"""With three layers even a perfect agreement has p = 1/3."""
MOST_ENUMERATED = 8
NUM_PERMUTATIONS = 9999
SIZE = "energy"


def layer_table(sweep: Sweep, comparison: "pd.DataFrame", energies: "pd.Series[float] | None") -> "pd.DataFrame":
    """Returns `layers.csv`.

    Args:
        comparison: the study's `comparison.csv`, with `num_tests`.
        energies: (part, layer) -> share of the squared energy of full's change in the decoder.
    """
    import pandas as pd

    pooled = comparison[(comparison["seed"].astype(str) == POOLED) & (comparison["metric"] == ACCURACY)]
    indexed = pooled.set_index(["task", "ability", "arm", "against"]).sort_index()
    rows = []
    for task, ability in dict.fromkeys(zip(pooled["task"], pooled["ability"], strict=True)):
        for arm, place in sweep.places.items():
            against = START if place.direction == SUFFICIENCY else FULL
            places = [(task, ability, arm, START), (task, ability, arm, against)]
            if any(each not in indexed.index for each in places):
                continue
            kept, tested = (indexed.loc[[each]].iloc[0] for each in places)
            rows.append(_row(sweep, place, arm, kept, tested, against) | {"task": task, "ability": ability})
            rows[-1]["energy_share"] = _energy(energies, place)
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def _row(sweep: Sweep, place: Place, arm: str, kept: Any, tested: Any, against: str) -> dict[str, Any]:
    share = [kept["gain_kept"], kept["gain_kept_low"], kept["gain_kept_high"]]
    if place.direction == NECESSITY:
        share = [1 - share[0], 1 - share[2], 1 - share[1]]
    return {
        "direction": place.direction, "part": place.part, "first": place.first, "last": place.last,
        "block": sweep.partition.block_of(int(place.middle)), "arm": arm,
        **dict(zip(("share", "share_low", "share_high"), share, strict=True)), "against": against,
        **{name: tested[name] for name in ("n", "num_seeds", "difference", "low", "high", "p", "p_holm", "num_tests")},
    }  # fmt: skip


def _energy(energies: "pd.Series[float] | None", place: Place) -> float:
    if energies is None:
        return float("nan")
    wanted = [(place.part, layer) for layer in range(place.first, place.last + 1)]
    return float(sum(energies.get(each, float("nan")) for each in wanted))


def energy_shares(matrices: "pd.DataFrame", layout: Layout) -> "pd.Series[float] | None":
    """Returns (part, layer) -> the share of the squared energy of full's change in the decoder, mean over seeds.

    Args:
        matrices: `matrices.csv` of `analyze.deltas`, with the phase `full`.
    """
    own = matrices[(matrices["phase"] == FULL) & matrices["layer"].notna() & (matrices["region"] == "llm")].copy()
    if own.empty:
        return None
    own["squared"] = own["energy"] ** 2
    own["squared"] /= own.groupby("seed", dropna=False)["squared"].transform("sum")
    num_runs = max(1, own["seed"].nunique(dropna=False))
    rest = own["tensor"].map(lambda name: layout.parameters[name].rest)
    found: dict[tuple[str, int], float] = {}
    for part in PARTS:
        prefixes = ("",) if part == LAYER else layout.family.parts[part]
        sums = own[rest.str.startswith(prefixes)].groupby("layer")["squared"].sum() / num_runs
        found |= {(part, int(layer)): value for layer, value in zip(sums.index, sums.tolist(), strict=True)}
    import pandas as pd

    return pd.Series(found, dtype=float)


def agreement_table(layers: "pd.DataFrame") -> "pd.DataFrame":
    """Returns `agreement.csv`: Spearman's rank correlation over places, with a permutation test, corrected (Holm)."""
    import pandas as pd

    rows = [
        {"task": task, "part": part, "first": first, "second": second, **rank_correlation(pair)}
        for (task, part), own in layers.groupby(["task", "part"], sort=False)
        for first, second, pair in _pairs(own)
    ]
    table = pd.DataFrame(rows, columns=["task", "part", "first", "second", "num_places", "rho", "p"])
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(float))
    return table


def _pairs(own: "pd.DataFrame") -> Iterator[tuple[str, str, "pd.DataFrame"]]:
    """Yields two named curves over the same places."""
    import pandas as pd

    curves: dict[str, pd.Series[float]] = {}
    for (ability, direction), rows in own.groupby(["ability", "direction"], sort=False):
        indexed = rows.set_index(["first", "last"])
        curves[f"{direction}, {ability}"] = indexed["share"]
        curves.setdefault(SIZE, indexed["energy_share"])
    for first, second in itertools.combinations(sorted(curves, key=lambda name: name == SIZE), 2):
        same_ability = first.partition(", ")[2] == second.partition(", ")[2]
        same_direction = first.partition(", ")[0] == second.partition(", ")[0]
        if same_ability or same_direction or second == SIZE:
            pair = pd.concat({"x": curves[first], "y": curves[second]}, axis=1, join="inner").dropna()
            if len(pair) >= FEWEST_RANKED:
                yield first, second, pair


def rank_correlation(pair: "pd.DataFrame") -> dict[str, Any]:
    """Returns Spearman's rho and the share of permutations with one at least as far from zero."""
    from scipy.stats import rankdata

    x, y = (rankdata(pair[name].to_numpy(float)) for name in ("x", "y"))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    if scale == 0:
        return {"num_places": len(pair), "rho": float("nan"), "p": float("nan")}
    rho = float(x @ y) / scale
    if len(x) <= MOST_ENUMERATED:
        shuffled = y[np.array(list(itertools.permutations(range(len(y)))))]
        count, total = 0, len(shuffled)
    else:
        generator = np.random.default_rng(0)
        shuffled = generator.permuted(np.tile(y, (NUM_PERMUTATIONS, 1)), axis=1)
        count, total = 1, NUM_PERMUTATIONS + 1
    extreme = int((np.abs(shuffled @ x) / scale >= abs(rho) - 1e-12).sum())
    return {"num_places": len(pair), "rho": rho, "p": (count + extreme) / total}


def middle_table(sweep: Sweep, groups: Sequence[Group]) -> "pd.DataFrame":
    """Returns `middle.csv`: accuracy of the arms of middle layers less that of the others, a contrast of all arms.

    Positive: training a middle layer alone gains more, or freezing one costs more, than one of the other layers.
    Whole layers only. All arms share the start, so it cancels.
    """
    import pandas as pd

    rows = []
    for group, direction in itertools.product(groups, (SUFFICIENCY, NECESSITY)):
        arms = {
            arm: sweep.partition.block_of(int(place.middle)) == "mid"
            for arm, place in sweep.places.items()
            if place.direction == direction and place.part == LAYER and arm in group.answers
        }
        num_middle = sum(arms.values())
        if not 0 < num_middle < len(arms):
            continue
        sign = 1.0 if direction == SUFFICIENCY else -1.0
        terms = [
            Term(
                coefficient=sign / num_middle if middle else -sign / (len(arms) - num_middle),
                values=group.answers[arm].values(ACCURACY)[..., None],
                trained=group.answers[arm].seeds != (None,),
            )
            for arm, middle in arms.items()
        ]
        found = contrast(terms, clusters=group.clusters, shares=True)
        if not found.n[0]:
            continue
        estimate = found.one()
        rows.append(
            {
                "task": group.task, "ability": group.ability, "direction": direction, "num_middle": num_middle,
                "num_other": len(arms) - num_middle, "n": int(found.n[0]),
                "num_seeds": min(len(term.values) for term in terms), "difference": estimate.estimate,
                "low": estimate.low, "high": estimate.high, "p": float(found.p()[0]),
            }
        )  # fmt: skip
    columns = ["task", "ability", "direction", "num_middle", "num_other", "n", "num_seeds", "difference", "low", "high",
               "p"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"].to_numpy(float)) if len(table) else table["p"]
    return table
