"""A study by modality as its commands leave it, with written numbers: RL helps in two looks, and cannot in a third."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tracking.run import open_run
from tracking.tables import write_table

LOOKS = ("outline", "speckle", "negative", "stained")
TASK, ABILITY, K = "data:validation", "vision", 16
START_RATES = {"outline": (0.62, 0.95), "speckle": (0.35, 0.8), "negative": (0.2, 0.6), "stained": (0.15, 0.52)}
"""Look -> pass@1 and pass@K of sft."""
GUESSING = 0.5
GAINS = {"outline": 0.2, "speckle": 0.25, "negative": 0.03, "stained": 0.005}
"""Look -> gain of the model that RL trained on it."""
UNSURE = "negative"
"""The look whose interval is too wide to decide."""


def head(look: str, model: str, seeds: int) -> dict[str, object]:
    return {"task": TASK, "ability": ABILITY, "modality": look, "model": model, "num_seeds": seeds, "num_samples": K}


def numbers(value: float, half: float = 0.03, n: int = 400) -> dict[str, object]:
    """An estimate with its interval."""
    return {"n": n, "value": value, "standard_error": half / 1.96, "low": value - half, "high": value + half,
            "scope": "training"}  # fmt: skip


def p_of(value: float, half: float) -> float:
    return math.erfc(abs(value) / (half / 1.96) / math.sqrt(2))


def support_rows() -> list[dict[str, object]]:
    rows = []
    for look in LOOKS:
        for model, shift in (("base", -0.1), ("sft", 0.0), ("data-all", 0.1)):
            one, most = (rate + shift for rate in START_RATES[look])
            own = head(look, model, 1 if model in ("base", "sft") else 4)
            for metric, k, value in (("pass@k", 1, one), ("pass@k", K, most), ("gap", K, most - one),
                                     ("guessing", K, GUESSING), ("support", K, most - GUESSING)):  # fmt: skip
                rows.append({**own, "metric": metric, "k": k, **numbers(value)})
                if metric == "support":
                    found = value > 0.05
                    rows[-1] |= {"p": p_of(value, 0.03), "p_holm": p_of(value, 0.03),
                                 "verdict": "support found" if found else "no support"}  # fmt: skip
    return rows


def change_rows() -> list[dict[str, object]]:
    return [
        {**head(look, "base", 1), "metric": "pass@k", "k": k, "against": "sft", **numbers(-0.1), "p": 0.001,
         "equivalent_within": 0.13, "verdict": "narrowed"}
        for look in LOOKS
        for k in (1, K)
    ]  # fmt: skip


def gain_columns(value: float, half: float) -> dict[str, object]:
    found = numbers(value, half)
    return {"gain": found.pop("value"), **found, "p": p_of(value, half), "p_holm": min(1.0, 4 * p_of(value, half)),
            "equivalent_within": abs(value) + half * 0.84}  # fmt: skip


def gap_rows() -> list[dict[str, object]]:
    rows = []
    for model in ("base", "data-all", *(f"data-{look}" for look in LOOKS), "sft-outline"):
        for look in LOOKS:
            one, most = START_RATES[look]
            gain = GAINS[look] if model == f"data-{look}" else 0.5 * GAINS[look]
            half = 0.08 if look == UNSURE else 0.03
            closed = gain / (most - one)
            rows.append(
                {**head(look, model, 4), "against": "sft", "start_pass_at_1": one, "start_pass_at_k": most,
                 "start_guessing": GUESSING, "start_gap": most - one, "start_gap_low": most - one - 0.04,
                 "start_gap_high": most - one + 0.04, **gain_columns(gain, half), "gap_closed": closed,
                 "gap_closed_low": closed - 0.1, "gap_closed_high": closed + 0.1,
                 "start_verdict": "no support" if look == "stained" else "support found"}
            )  # fmt: skip
        everywhere = {
            "task": "all",
            "ability": "all",
            "model": model,
            "against": "sft",
            "num_seeds": 4,
            "num_samples": K,
        }
        for label, gain in (("all", 0.1), ("with support", 0.16), ("without support", 0.005),
                            ("with less without", 0.155)):  # fmt: skip
            rows.append({**everywhere, "modality": label, **gain_columns(gain, 0.03)})
    return rows


def bin_rows() -> list[dict[str, object]]:
    gains = {"0": 0.02, "(0, 0.5]": 0.2, "(0.5, 1)": 0.15, "1": 0.0, "sometimes less never": 0.16}
    return [
        {**place, "against": "sft", "bin": name, "start_rate": 0.3, "rate": 0.3 + gain, **gain_columns(gain, 0.05)}
        for place in [*(head(look, "data-all", 4) for look in LOOKS),
                      {**head("all", "data-all", 4), "task": "all", "ability": "all"}]
        for name, gain in gains.items()
    ]  # fmt: skip


def transfer_rows() -> list[dict[str, object]]:
    return [
        {"trained_on": look, "method": method, "evaluated_on": other, "difference": gain, "low": gain - 0.04,
         "high": gain + 0.04, "p": p_of(gain, 0.04), "p_holm": min(1.0, 4 * p_of(gain, 0.04)), "n": 250, "num_seeds": 4}
        for method, most in (("rl", 1.0), ("sft", 0.6))
        for look in (*LOOKS, "all")
        for other in LOOKS
        for gain in [most * GAINS.get(look, 0.1) * (1.0 if look == other else 0.4)]
    ]  # fmt: skip


def contrast_rows() -> list[dict[str, object]]:
    return [
        {"method": method, "question": question, "trained_on": look, "difference": 0.08, "low": 0.03, "high": 0.13,
         "p": 0.002, "p_holm": 0.01, "n": 250, "num_seeds": 4}
        for method in ("rl", "sft", "rl less sft")
        for question in ("own", "others", "own less others")
        for look in (*LOOKS, "pooled")
    ]  # fmt: skip


def tower_rows() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    accuracies = {"pixels": 0.5, "random": 0.45, "dinov2": 0.78, "sft": 0.8}
    scores, differences = [], []
    for place, look in enumerate(LOOKS):
        for layer in ("1", "merger"):
            for model, accuracy in accuracies.items():
                value = accuracy - 0.05 * place - (0.1 if layer == "1" else 0.0)
                scores.append({"model": model, "seed": None, "layer": layer, "probe": "linear", "modality": look,
                               "accuracy": value, "low": value - 0.04, "high": value + 0.04, "cv_accuracy": value,
                               "n_test": 250})  # fmt: skip
                if model != "sft":
                    gap = accuracies["sft"] - accuracy
                    differences.append({"probe": "linear", "layer": layer, "model": "sft", "against": model,
                                        "against_layer": "merger", "n": 250, "difference": gap, "low": gap - 0.05,
                                        "high": gap + 0.05, "p": p_of(gap, 0.05), "p_holm": p_of(gap, 0.05),
                                        "modality": look})  # fmt: skip
    return scores, differences


def statement_rows() -> list[dict[str, object]]:
    common = {"axis": "sharpening", "against": "sft", "scope": "training", "source": "arXiv 2603.01301"}
    return [
        {**common, "statement": "RL helps more with support than without", "rule": "the former gain less the latter",
         "expected": "positive", "verdict": "supported", "model": "data-all", "difference": 0.155, "low": 0.125,
         "high": 0.185, "p": 1e-5, "p_holm": 1e-4, "n": 1600, "num_seeds": 4, "equivalent_within": 0.18},
        {**common, "statement": "RL does not raise pass@K", "rule": "pass@K of the RL model less that of the start",
         "expected": "not positive", "verdict": "not measured"},
    ]  # fmt: skip


def write_output(
    directory: Path, command: str, tables: Mapping[str, list[dict[str, object]]], **settings: object
) -> None:
    """Writes a finished output directory."""
    with open_run(directory, command=command, settings=settings):
        for name, rows in tables.items():
            write_table(directory / f"{name}.csv", pd.DataFrame(rows))


def write_study(directory: Path) -> Path:
    """Writes all outputs that the page reads."""
    scores, differences = tower_rows()
    write_output(
        directory / "support", "eval.support",
        {"support": support_rows(), "changes": change_rows(), "gaps": gap_rows(), "bins": bin_rows()},
    )  # fmt: skip
    write_output(
        directory / "transfer", "eval.transfer", {"transfer": transfer_rows(), "contrasts": contrast_rows()}
    )  # fmt: skip
    write_output(directory / "statements", "eval.claims", {"when_rl_helps": statement_rows()})
    write_output(
        directory / "tower", "eval.tower", {"tower": scores, "differences": differences}, encoders={"dinov2": "d"}
    )
    return directory
