"""Computes the tables of `analyze.deltas` from records: sums over tensors, never means of ratios.

A group's energy is the root of its tensors' summed squares, so squared energies of layers, blocks and regions add up to
the total. Two additional columns are those of the released code, the sum and the mean of the matrices' energies.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from analyze.deltas.floor import ABOVE, AT_FLOOR, IDENTICAL, verdict
from analyze.deltas.sums import PairChange

if TYPE_CHECKING:
    import pandas as pd

LABELS = ["phase", "seed"]
PLACE = ["block", "region", "layer"]
SUMS = ["delta_squares", "start_squares", "num_elements"]
FLOOR_SUMS = ["rounding_squares", "changed_ulp_squares"]
MERGED_SUMS = ["merged_num_changed", "merged_delta_squares", "merged_dot_product"]
NULL = "null_"


def change_table(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Returns the measured sums: one row per phase and tensor, with a verdict if the floor was measured."""
    import pandas as pd

    table = pd.DataFrame(rows)
    return table.assign(verdict=table.apply(_verdict, axis=1)) if "rounding_squares" in table else table


def summarise(changes: "pd.DataFrame", keys: list[str]) -> "pd.DataFrame":
    """Returns energy, relative energy, rms, changed share and noise floor, summed over the tensors of each group.

    Columns: `energy` is ‖Δ‖ (Frobenius), `energy_sum` and `energy_mean` the sum and mean over the group's matrices (the
    released code's), `relative_energy` is ‖Δ‖/‖W_start‖, `rounding_energy` is what rounding one end alone would give
    (sqrt(Σ ulp²/12)), `energy_over_rounding` their ratio, and `changed_rms_ulps` how far the elements moved that did.
    For an adapter all of this is exact, that of s·B·A before any rounding. `merged_changed_frac` and `merged_energy`
    are those of the weights that merging stores, and `merged_cosine` is the cosine between that change and the exact
    one.
    """
    with_floor, with_counts = "rounding_squares" in changes, "num_changed" in changes
    matrices = changes["num_rows"].notna()
    table = changes.assign(
        matrix_energy=changes["delta_squares"].map(math.sqrt).where(matrices, 0.0), num_matrices=matrices.astype(int)
    )
    if with_floor:
        for name, label in (("num_identical", IDENTICAL), ("num_at_floor", AT_FLOOR), ("num_above_floor", ABOVE)):
            table[name] = (changes["verdict"] == label).astype(int)
    counts = ["num_identical", "num_at_floor", "num_above_floor"] if with_floor else []
    sums = [*SUMS, "matrix_energy", "num_matrices", *(["num_changed"] if with_counts else [])]
    sums += [*FLOOR_SUMS, *counts] if with_floor else []
    grouped = table.groupby(keys, sort=False, dropna=False)
    total = grouped[sums].sum().reset_index()
    result = total[keys].copy()
    result["num_elements"] = total["num_elements"]
    result["energy"] = total["delta_squares"].map(math.sqrt)
    result["energy_sum"] = total["matrix_energy"]
    result["energy_mean"] = (total["matrix_energy"] / total["num_matrices"]).where(total["num_matrices"] > 0)
    result["start_norm"] = total["start_squares"].map(math.sqrt)
    result["relative_energy"] = (result["energy"] / result["start_norm"]).where(result["start_norm"] > 0)
    result["rms"] = (total["delta_squares"] / total["num_elements"]).map(math.sqrt)
    if with_counts:
        result["changed_frac"] = total["num_changed"] / total["num_elements"]
    if with_floor:
        result["rounding_energy"] = total["rounding_squares"].map(math.sqrt)
        result["energy_over_rounding"] = (result["energy"] / result["rounding_energy"]).where(
            result["rounding_energy"] > 0
        )
        result["changed_rms_ulps"] = (total["delta_squares"] / total["changed_ulp_squares"]).pow(0.5)
        result["max_change"] = grouped["max_change"].max().to_numpy()
        result[counts] = total[counts]
    if "merged_delta_squares" in changes:
        merged = grouped[MERGED_SUMS].sum(min_count=1).reset_index()  # empty where no adapter makes the phase
        result["merged_changed_frac"] = merged["merged_num_changed"] / total["num_elements"]
        result["merged_energy"] = merged["merged_delta_squares"].pow(0.5)
        norms = result["energy"] * result["merged_energy"]
        result["merged_cosine"] = (merged["merged_dot_product"] / norms).where(norms > 0)
    return result


def matrix_table(changes: "pd.DataFrame", spectra: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Returns one row per phase and tensor: energy, noise floor with its verdict, and the spectrum's summaries.

    `spectral_norm_over_null` separates direction from size: about 1 for changes without a direction, larger if one
    dominates, even if the change's energy is at the floor.
    """
    import pandas as pd

    table = summarise(changes, [*LABELS, *PLACE, "tensor"]).drop(columns=["energy_sum", "energy_mean"])
    if "rounding_squares" in changes:
        table = table.drop(columns=["num_identical", "num_at_floor", "num_above_floor"])
        table["verdict"] = changes["verdict"].to_numpy()
    position = list(table).index("num_elements")
    table.insert(position, "num_rows", changes["num_rows"].to_numpy())
    table.insert(position + 1, "num_columns", changes["num_columns"].to_numpy())
    if not spectra:
        return table
    rows = []
    for spectrum in spectra:
        row = {name: spectrum[name] for name in (*LABELS, "tensor")}
        row["spectrum_method"] = spectrum["method"]
        for prefix, own in (("", spectrum), (NULL, spectrum["null"])):
            if own is not None:
                row |= {prefix + name: value for name, value in own["summary"].items()}
        rows.append(row)
    table = table.merge(pd.DataFrame(rows), on=[*LABELS, "tensor"], how="left", validate="one_to_one")
    if f"{NULL}spectral_norm" in table:
        null = table[f"{NULL}spectral_norm"]
        table["spectral_norm_over_null"] = (table["spectral_norm"] / null).where(null > 0)
    return table


def arm_table(blocks: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row per arm and seed: relative energy of every block and, if counted, its changed share.

    For an adapter also the share that merging changes.
    """
    order = list(dict.fromkeys(blocks["block"]))
    arms = blocks[LABELS].drop_duplicates().reset_index(drop=True)
    for value in ("relative_energy", "changed_frac", "merged_changed_frac"):
        if value not in blocks:
            continue
        wide = blocks.pivot(index=LABELS, columns="block", values=value)[order]
        wide.columns = [f"{block}_{value}" for block in order]
        arms = arms.merge(wide.reset_index(), on=LABELS, validate="one_to_one")
    return arms


def ulps_table(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> "pd.DataFrame":
    """Returns the histogram of changes in ulps: one row per phase, block and bin."""
    import pandas as pd

    bins = [
        {name: row[name] for name in (*LABELS, "block")} | {"ulps": label, "num_elements": number}
        for row in rows
        for label, number in zip(labels, row["ulps_histogram"], strict=True)
    ]
    long = pd.DataFrame(bins).groupby([*LABELS, "block", "ulps"], sort=False)["num_elements"].sum().reset_index()
    total = long.groupby([*LABELS, "block"], sort=False)["num_elements"].transform("sum")
    return long.assign(frac=long["num_elements"] / total)


def spectra_table(spectra: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Returns every singular value: phase, seed, position, rank (from 1), sigma with its error, and the null's."""
    import numpy as np
    import pandas as pd

    parts = []
    for spectrum in spectra:
        length = len(spectrum["sigma"])
        part = {name: spectrum[name] for name in (*LABELS, *PLACE, "tensor")}
        part |= {"rank": np.arange(1, length + 1, dtype=np.int32)}
        part |= {name: np.asarray(spectrum[name], dtype=np.float64) for name in ("sigma", "sigma_error")}
        null = spectrum["null"]
        part["null_sigma"] = np.full(length, np.nan) if null is None else np.asarray(null["sigma"], dtype=np.float64)
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    table["layer"] = table["layer"].astype("Int32")
    return table.astype(dict.fromkeys((*LABELS, "block", "region", "tensor"), "category"))


def decay_table(spectra: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Returns ln(σ_i/σ_1) over the leading ranks (paper, Eq. 3): median and quartiles over a block's matrices.

    Unchanged matrices are left out, and so are ranks that a matrix does not have, or not above its rounding error.
    """
    import pandas as pd

    rows = []
    for spectrum in spectra:
        for kind, own in (("", spectrum), (NULL, spectrum["null"])):
            if own is None or not own["summary"]["num_in_log_volume"]:
                continue
            labels = {name: spectrum[name] for name in (*LABELS, "block")}
            leading = own["sigma"][: own["summary"]["num_in_log_volume"]]
            rows += [
                labels | {"kind": kind, "rank": rank, "log_decay": math.log(value / leading[0])}
                for rank, value in enumerate(leading, 1)
            ]
    if not rows:
        return pd.DataFrame(columns=[*LABELS, "block", "rank", "n", "low", "median", "high"])
    grouped = pd.DataFrame(rows).groupby([*LABELS, "block", "rank", "kind"], sort=False)["log_decay"]
    quartiles = grouped.agg(
        n="size", low=lambda own: own.quantile(0.25), median="median", high=lambda own: own.quantile(0.75)
    )
    wide = quartiles.unstack("kind", sort=False)
    wide.columns = ["".join(reversed(column)) for column in wide.columns.to_list()]
    return wide.reset_index()


def pair_table(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Returns one row per pair of phases and tensor: cosine, overlap of changed elements and, for matrices, angles."""
    import pandas as pd

    names = [field.name for field in fields(PairChange)]
    table = pd.DataFrame(rows).drop(columns="key", errors="ignore")
    pairs = [PairChange(**{name: row[name] for name in names}) for row in rows]
    position = list(table).index("num_elements")
    table.insert(position, "cosine", [pair.cosine for pair in pairs])
    table.insert(position + 1, "overlap", [pair.jaccard for pair in pairs])
    table.insert(position + 2, "chance_overlap", [pair.independent_jaccard for pair in pairs])
    return table


def _verdict(row: Any) -> str:
    return verdict(
        delta_squares=row["delta_squares"],
        rounding_squares=row["rounding_squares"],
        changed_ulp_squares=row["changed_ulp_squares"],
        num_changed=int(row["num_changed"]),
    )
