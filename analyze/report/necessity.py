"""What did the necessity study find? The arms beside each other, as far as they were run: sentences, rows, figures."""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.probes.figures import save_figures
from analyze.report.inputs import Output
from analyze.report.parts import inline_file
from analyze.report.study import ArmRun, NecessityStudy
from analyze.report.study_figures import FIGURES
from eval.compare.command import COLUMNS
from eval.display.colours import model_colour
from eval.display.formatting import MINUS, interval, percent, points, probability
from tracking.run import read_run
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ACCURACY = "accuracy"
WELL_FORMED = "accuracy where both are well-formed"
NOT_ARMS = ("full", "base")
"""Models of a comparison that keep no share of a gain: the gain is full's, and base stands before SFT."""
SCORE_COLUMNS = ("model", "seed", "task", "ability", "accuracy", "n")


def read_partial(output: Output) -> tuple[NecessityStudy, list[str]]:
    """Returns what there is of a study, and what is missing of it."""
    import pandas as pd

    directory, settings = output.directory, output.settings
    gaps: list[str] = []
    runs = _read_runs(directory, settings, gaps)

    def table(paths: list[Path], columns: tuple[str, ...], what: str) -> "pd.DataFrame":
        for path in paths:
            if path.is_file():
                return read_table(path)
        gaps.append(f"{what} is not there: {paths[0].name} was not written")
        return pd.DataFrame(columns=list(columns))

    study = NecessityStudy(
        directory,
        output.run,
        table([directory / "scores.csv", directory / "comparison" / "scores.csv"], SCORE_COLUMNS, "what models can do"),
        table(
            [directory / "comparison.csv", directory / "comparison" / "comparison.csv"], COLUMNS,
            "the comparison of the arms",
        ),
        table([directory / "deltas" / "layers.csv"], ("phase",), "the change of the weights"),
        runs,
    )  # fmt: skip
    return study, gaps


def _read_runs(directory: Path, settings: dict[str, Any], gaps: list[str]) -> list[ArmRun]:
    """Returns the arms that were trained to their end, in the settings' order, and adds what is missing to the gaps."""
    runs = []
    for arm in [text.partition("=")[0] for text in settings["arms"]]:
        for seed in settings["seeds"]:
            name, path = f"{arm}, seed {seed}", directory / "arms" / f"{arm}-seed{seed}"
            try:
                state = read_run(path)
            except ValueError:
                gaps.append(f"{name}: not trained")
                continue
            if state["status"] != "finished":
                error = state["attempts"][-1].get("error", "stopped before its end")
                gaps.append(f"{name}: training {state['status']}: {error}")
            if (path / "freeze_report.json").is_file() and (path / "metrics.csv").is_file():
                proof = json.loads((path / "freeze_report.json").read_text(encoding="utf-8"))
                runs.append(ArmRun(arm, seed, proof, read_table(path / "metrics.csv")))
    return runs


def gain_kept(row: Any) -> str:
    """Formats the share of the gain that a comparison row keeps: `85 % [60, 110]`; empty where none is given."""
    if row["gain_kept"] != row["gain_kept"]:
        return ""
    kept, low, high = (f"{100 * row[name]:.0f}" for name in ("gain_kept", "gain_kept_low", "gain_kept_high"))
    return f"{kept} % [{low}, {high}]".replace("-", MINUS)


def necessity(rows: Any) -> str:
    """Answers the question of the page for one ability, from its pooled rows against SFT by arm."""
    lost = [arm for arm, row in rows.iterrows() if arm not in NOT_ARMS and row["gain_kept_high"] < 1]
    if not lost:
        return "No interval lies below 100 %: none of these changes was shown to be necessary for it."
    return f"Below 100 % throughout, and so without part of it: {', '.join(lost)}."


def findings(study: NecessityStudy) -> list[tuple[str, str]]:
    """Says in sentences what the tables say: per ability what RL gained, and what each arm kept of it."""
    sentences = []
    if study.scores.empty or "sft" not in set(study.scores["model"]):
        return []
    scores = study.scores[study.scores["task"] == study.scores["task"].iloc[0]]
    for ability in study.abilities:
        rows = study.pooled(ability, ACCURACY, "sft").set_index("arm")
        if "full" not in rows.index:
            continue
        own = scores[scores["ability"] == ability].groupby("model")["accuracy"].mean()
        tokens = scores[scores["ability"] == ability].groupby("model")["mean_tokens"].mean()
        full = rows.loc["full"].to_dict()
        verdict = (
            f"SFT answers {percent(own['sft'])} % of the {int(full['n'])} held-out prompts right, full RL "
            f"{percent(own['full'])} %: {points(full['difference'])} points {interval(full['low'], full['high'])}, "
            f"corrected p = {probability(full['p_holm'])}."
        )
        if math.isnan(full["gain_kept"]):
            reason = "RL loses here" if full["high"] < 0 else "The interval holds zero"
            verdict += f" {reason}, so there is no gain of which a share could be kept."
        else:
            kept = [f"{arm} keeps {gain_kept(row)}" for arm, row in rows.iterrows() if arm not in NOT_ARMS]
            verdict += f" Of this gain, {', '.join(kept)}. {necessity(rows)}" if kept else ""
        verdict += f" Full's replies have {tokens['full']:.0f} tokens on average, SFT's {tokens['sft']:.0f}."
        sentences.append((ability.capitalize(), verdict))
    return sentences


def answers(study: NecessityStudy) -> list[str]:
    """Returns the same in short, a sentence an ability."""
    sentences = []
    for ability in study.abilities:
        rows = study.pooled(ability, ACCURACY, "sft").set_index("arm")
        if "full" not in rows.index:
            continue
        full: Any = rows.loc["full"]
        sentence = f"{ability}: full RL {MINUS} sft is {points(full['difference'])} points "
        sentence += f"{interval(full['low'], full['high'])}, corrected p = {probability(full['p_holm'])}"
        kept = [f"{arm} {gain_kept(row)}" for arm, row in rows.iterrows() if arm not in NOT_ARMS and gain_kept(row)]
        sentences.append(f"{sentence}; of this gain keep {', '.join(kept)}." if kept else f"{sentence}.")
    return sentences


def score_rows(study: NecessityStudy) -> list[dict[str, Any]]:
    """Returns a row per model and seed with a cell per ability."""
    rows = []
    for (model, seed), group in study.scores.groupby(["model", "seed"], sort=False, dropna=False):
        cells = []
        for ability in study.abilities:
            own = group[group["ability"] == ability]
            if own.empty:
                continue
            row = own.iloc[0]
            cells.append(
                {
                    "accuracy": percent(row["accuracy"]),
                    "interval": f"[{percent(row['low'])}, {percent(row['high'])}]",
                    "n": int(row["n"]),
                    "unscored": int(row["num_unscored"]),
                    "well_formed": percent(row["well_formed_frac"]),
                    "tokens": f"{row['mean_tokens']:.1f}",
                }
            )
        rows.append({"model": model, "seed": _seed(seed), "cells": cells})
    return rows


def comparison_rows(study: NecessityStudy, *, pooled: bool, metric: str) -> list[dict[str, Any]]:
    """Returns the comparison table's rows as text."""
    table = study.comparison[study.comparison["metric"] == metric]
    table = table[(table["seed"].astype(str) == "pooled") == pooled]
    rows = []
    for _, row in table.iterrows():
        rows.append(
            {
                "ability": row["ability"],
                "arm": row["arm"],
                "against": row["against"],
                "seed": _seed(row["seed"]),
                "n": int(row["n"]),
                "difference": points(row["difference"]),
                "interval": interval(row["low"], row["high"]),
                "flips": ""
                if row["num_gained"] != row["num_gained"]
                else f"+{int(row['num_gained'])} / {MINUS}{int(row['num_lost'])}",
                "p": probability(row["p"]),
                "p_holm": probability(row["p_holm"]),
                "significant": bool(row["p_holm"] < 0.05),
                "kept": "" if row["arm"] in NOT_ARMS else gain_kept(row),
            }
        )
    return rows


def proof_rows(study: NecessityStudy) -> list[dict[str, Any]]:
    """Returns a row per arm and seed: frozen tensors, checkpoints read back, breaches, changed share per block."""
    rows = []
    for run in study.runs:
        proof = run.proof
        blocks = {row["block"]: row for row in proof["blocks"]}
        rows.append(
            {
                "arm": run.arm,
                "seed": run.seed,
                "frozen": proof["num_frozen_tensors"],
                "tensors": len(proof["tensors"]),
                "num_checkpoints": len(proof["checkpoints"]),
                "breaches": proof["num_breaches"],
                "never_moved": len(proof["never_moved"]),
                "changed": [
                    {
                        "text": "0" if blocks[block]["changed_frac"] == 0 else percent(blocks[block]["changed_frac"]),
                        "frozen": blocks[block]["num_frozen"] == blocks[block]["num_tensors"],
                    }
                    for block in blocks
                ],
                "blocks": list(blocks),
            }
        )
    return rows


def rollout_rows(study: NecessityStudy) -> list[dict[str, Any]]:
    """Returns a row per arm and seed whose replies vLLM wrote: how far it was from the trainer in log-probabilities."""
    rows = []
    for run in study.runs:
        cells = {}
        for kind in ("text", "images"):
            for name, column in (("gap", "rollout_gap"), ("p99", "rollout_gap_p99"), ("rounding", "rollout_rounding")):
                logged = f"{column}/{kind}" in run.metrics and run.metrics[f"{column}/{kind}"].notna().any()
                cells[f"{kind}_{name}"] = f"{run.metrics[f'{column}/{kind}'].mean():.2g}" if logged else ""
        if any(cells.values()):
            rows.append({"arm": run.arm, "seed": run.seed, **cells})
    return rows


def arm_rows(study: NecessityStudy) -> list[dict[str, Any]]:
    """Returns a row an arm: what it freezes and how many parameters train."""
    rows = []
    for arm in study.arms:
        run = next(run for run in study.runs if run.arm == arm)
        rows.append(
            {
                "arm": arm,
                "colour": model_colour(arm, study.arms),
                "freezes": " ".join([*run.proof["freeze"], *run.proof["always_freeze"]]) or "nothing",
                "trainable": f"{run.num_trainable:,}",
                "share": f"{100 * run.num_trainable / run.num_elements:.0f}",
                "seeds": ", ".join(str(entry.seed) for entry in study.runs if entry.arm == arm),
            }
        )
    return rows


def draw(study: NecessityStudy) -> dict[str, str]:
    """Draws the figures that the tables allow beside them, and returns them by name, inlined."""
    in_deltas = set(study.layers["phase"])
    drawn = replace(study, runs=[run for run in study.runs if run.arm in in_deltas])
    allowed = {
        "gains": not _against_sft(study).empty,
        "gain_kept": "full" in study.arms and not _against_sft(study).empty,
        "rewards": bool(study.runs),
        "deltas": bool(drawn.runs),
    }
    draws: dict[str, Callable[[], Figure | None]] = {
        name: partial(function, drawn if name == "deltas" else study)
        for name, function in FIGURES.items()
        if allowed[name]
    }
    folder = study.directory / "figures"
    save_figures(folder, draws)
    return {name: inline_file(folder / f"{name}.png") for name in draws}


def _against_sft(study: NecessityStudy) -> "pd.DataFrame":
    return study.comparison[(study.comparison["against"] == "sft") & (study.comparison["metric"] == ACCURACY)]


def necessity_values(output: Output) -> dict[str, Any]:
    """Returns what the template shows of a study."""
    import yaml

    study, gaps = read_partial(output)
    attempt = study.run["attempts"][-1]
    whole = bool(study.runs)
    scores = score_rows(study)
    return {
        "name": study.directory.resolve().name,
        "study": study,
        "gaps": gaps,
        "findings": findings(study),
        "answers": answers(study),
        "arms": arm_rows(study),
        "scores": scores,
        "pooled": comparison_rows(study, pooled=True, metric=ACCURACY),
        "pooled_well_formed": comparison_rows(study, pooled=True, metric=WELL_FORMED),
        "per_seed": comparison_rows(study, pooled=False, metric=ACCURACY),
        "proofs": proof_rows(study),
        "rollouts": rollout_rows(study),
        "images": draw(study),
        "partition": study.partition if whole else {},
        "num_layers": sum(len(layers) for layers in study.partition.values()) if whole else 0,
        "num_seeds": len({run.seed for run in study.runs}),
        "num_samples": {
            ability: int(study.pooled(ability, ACCURACY, "sft")["n"].max())
            for ability in study.abilities
            if not study.pooled(ability, ACCURACY, "sft").empty
        },
        "attempt": attempt,
        "num_attempts": len(study.run["attempts"]),
        "command": "python -m train.necessity " + shlex.join(attempt["argv"][1:]).replace(" --collect true", ""),
        "settings": study.run["settings"],
        "files": {
            path: yaml.safe_dump(values, sort_keys=False)
            for path, values in study.run["settings"].get("files", {}).items()
        },
        "has_base": "base" in set(study.scores["model"]),
    }


def _seed(value: Any) -> str:
    if value != value or value == "":
        return ""
    return str(value).removesuffix(".0")
