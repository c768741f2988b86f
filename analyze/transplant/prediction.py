"""How far does the cheap test predict the trained arms? Transplants beside arms that train or freeze the same place.

    prediction.csv    a row per transplant that has a trained arm: both differences in accuracy with their intervals
    agreement.csv     Spearman's rank correlation over places between the two, with a bootstrap interval over places
                      and a permutation test (exact up to eight places)

`only-llm:3` is compared with sufficiency of `llm:3`, `freeze-llm:3` with necessity of it, both as differences to the
start or to the arm `full`. Trained arms are read from `layers.csv` of `analyze.layers`, or from `comparison.csv` of
`eval.compare` and of `train.necessity`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from analyze.layers.plan import FULL, SUFFICIENCY
from analyze.layers.plan import START as SFT
from analyze.layers.tables import FEWEST_RANKED, rank_correlation
from analyze.transplant.plan import unit_of_arm
from eval.compare.scope import read_current
from eval.statistics.differences import POOLED
from eval.statistics.intervals import CONFIDENCE
from eval.statistics.pairing import ACCURACY

if TYPE_CHECKING:
    import pandas as pd

TABLES = (("layers.csv", "analyze.layers"), ("comparison.csv", "eval.compare"))
"""Tables with trained arms, and the commands that write them."""
NEEDED = ("task", "ability", "arm", "against", "difference", "low", "high", "num_seeds")
PREDICTION_COLUMNS = [
    "task", "ability", "arm", "direction", "unit", "part", "first", "last", "alpha", "n", "num_seeds", "difference",
    "low", "high", "trained_arm", "trained_seeds", "trained_difference", "trained_low", "trained_high",
]  # fmt: skip
AGREEMENT_COLUMNS = [
    "task", "ability", "arm", "direction", "part", "alpha", "num_places", "rho", "low", "high", "p", "mean_error",
]  # fmt: skip
NUM_RESAMPLES = 9999


def find_trained(folder: Path) -> Path:
    """Returns the table of trained arms in a folder.

    Raises:
        ValueError: if there is none.
    """
    for name, _ in TABLES:
        for place in (folder / name, folder / "comparison" / name):
            if place.is_file():
                return place
    raise ValueError(
        f"{folder} has neither layers.csv nor comparison.csv; expected an output directory of analyze.layers, "
        "train.necessity or eval.compare"
    )


def read_trained(folders: Sequence[Path]) -> "pd.DataFrame":
    """Returns the pooled accuracy differences of all arms that train or freeze one place.

    Adds `direction` and `place`, the unit's name without colons.

    Raises:
        ValueError: if a folder has no such table, or no such arm.
    """
    import pandas as pd

    tables = []
    for folder in folders:
        path = find_trained(folder)
        table = read_current(path, dict(TABLES)[path.name], NEEDED)
        if "metric" in table.columns:
            table = table[(table["metric"] == ACCURACY) & (table["seed"].astype(str) == POOLED)]
        named = [unit_of_arm(str(arm)) for arm in table["arm"]]
        table = table.assign(
            direction=["" if each is None else each[0] for each in named],
            place=["" if each is None else each[1] for each in named],
        )
        against = table["direction"].map(lambda direction: SFT if direction == SUFFICIENCY else FULL)
        table = table[(table["direction"] != "") & (table["against"] == against)]
        if table.empty:
            raise ValueError(
                f"{path} has no arm that trains or freezes one place, compared with {SFT} or {FULL}; expected arms "
                "such as only-llm:3 or freeze-mid"
            )
        tables.append(table[[*NEEDED, "direction", "place"]])
    return pd.concat(tables, ignore_index=True).drop_duplicates(["task", "ability", "arm"])


def prediction_table(transplants: "pd.DataFrame", trained: "pd.DataFrame") -> "pd.DataFrame":
    """Returns `prediction.csv`."""
    import pandas as pd

    by_place = trained.set_index(["task", "ability", "direction", "place"]).sort_index()
    rows = []
    for _, row in transplants[transplants["n"] > 0].iterrows():
        place = row["task"], row["ability"], row["direction"], row["unit"].replace(":", "")
        if place not in by_place.index:
            continue
        arm = by_place.loc[[place]].iloc[0]
        own = {name: row[name] for name in PREDICTION_COLUMNS if name in row.index}
        rows.append(
            own
            | {"trained_arm": arm["arm"], "trained_seeds": arm["num_seeds"]}
            | {f"trained_{name}": arm[name] for name in ("difference", "low", "high")}
        )
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def agreement_table(prediction: "pd.DataFrame") -> "pd.DataFrame":
    """Returns `agreement.csv`: a row per curve over depth with four places or more.

    `mean_error` is the mean absolute difference between a transplant's and its arm's difference in accuracy.
    """
    import pandas as pd

    rows = []
    keys = ["task", "ability", "arm", "direction", "part", "alpha"]
    for place, own in prediction.groupby(keys, sort=False):
        if len(own) < FEWEST_RANKED:
            continue
        pair = pd.DataFrame({"x": own["difference"], "y": own["trained_difference"]}).astype(float)
        low, high = bootstrap_interval(pair["x"].to_numpy(), pair["y"].to_numpy())
        error = float((pair["x"] - pair["y"]).abs().mean())
        found = rank_correlation(pair)
        rows.append(dict(zip(keys, place, strict=True)) | found | {"low": low, "high": high, "mean_error": error})
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def bootstrap_interval(x: Float[np.ndarray, " places"], y: Float[np.ndarray, " places"]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of Spearman's rho over resampled places; NaN if a curve is constant.

    Resamples in which one curve is constant have no correlation and are left out.
    """
    from scipy.stats import rankdata

    chosen = np.random.default_rng(0).integers(len(x), size=(NUM_RESAMPLES, len(x)))
    ranks = [rankdata(values[chosen], axis=1) for values in (x, y)]
    centred = [each - each.mean(1, keepdims=True) for each in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    rho = (centred[0] * centred[1]).sum(1)[scale > 0] / scale[scale > 0]
    if not len(rho) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(rho, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def curve_words(row: Any) -> str:
    """Returns what a row of `agreement.csv` is about."""
    part = {"layer": "single layers or windows", "attn": "attention", "mlp": "MLP", "block": "blocks"}
    return f"{row['ability']}, {row['direction']}, {part.get(row['part'], row['part'])}, α = {row['alpha']:g}"
