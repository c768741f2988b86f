"""What did the necessity study find? Rows and figures of the arms that were trained, and what is missing.

If a comparison elsewhere on the page holds the same differences (`same.py`), scores and differences are taken from it,
so that one difference has one p-value on a page.
"""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.probes.figures import save_figures
from analyze.report import parts
from analyze.report.figures import FIGURES, REWARD
from analyze.report.inputs import Output
from analyze.report.kept import (
    FULL,
    MARGINS,
    NOT_ARMS,
    START,
    answer,
    beside_full,
    gain_kept,
    gain_rows,
    proof_sentence,
)
from analyze.report.parts import inline_drawing, inline_file
from analyze.report.same import source_of
from analyze.report.start import BASE, draw_levels, weaker_start
from analyze.report.study import ArmRun, NecessityStudy
from eval.compare.command import COLUMNS
from eval.compare.scope import (
    about,
    corrections,
    counted_tests,
    covers,
    is_significant,
    read_comparison,
    row_about,
    verdict,
)
from eval.compare.sentences import could_find
from eval.display.colours import model_colour
from eval.display.formatting import MINUS, interval, percent, points, probability
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ACCURACY, WELL_FORMED
from tracking.run import read_run
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TITLES = {
    "gained": "The gain, and what each arm kept",
    "arms": "What was trained",
    "proof": "Proof of freezing",
    "scores": "What every model can do",
    "rewards": "Reward during training",
    "weights": "Where the weights changed",
    "rollouts": "What vLLM sampled and what the trainer scored",
    "comparisons": "All comparisons",
    "limits": "Limits",
    "repeat": "How to repeat it",
}
"""Key -> heading, in the page's order."""
COMPARISON = "comparison.csv"
SCORE_COLUMNS = ("model", "seed", "task", "ability", "accuracy", "n")


def read_partial(output: Output) -> tuple[NecessityStudy, list[str]]:
    """Returns what there is of a study, and what is missing of it."""
    import pandas as pd

    directory, settings = output.directory, output.settings
    gaps: list[str] = []
    runs = _read_runs(directory, settings, gaps)

    def table(paths: list[Path], columns: tuple[str, ...], what: str) -> "pd.DataFrame":
        for path in filter(Path.is_file, paths):
            try:
                return read_comparison(path) if path.name == COMPARISON else read_table(path)
            except ValueError as error:
                gaps.append(str(error))
                return pd.DataFrame(columns=list(columns))
        gaps.append(f"{what}: {paths[0].name} was not written")
        return pd.DataFrame(columns=list(columns))

    study = NecessityStudy(
        directory,
        output.run,
        table([directory / "scores.csv", directory / "comparison" / "scores.csv"], SCORE_COLUMNS, "scores of models"),
        table([directory / COMPARISON, directory / "comparison" / COMPARISON], COLUMNS, "comparison of the arms"),
        table([directory / "deltas" / "layers.csv"], ("phase",), "change of the weights"),
        runs,
    )
    return study, gaps


def quote(study: NecessityStudy, source: Output) -> NecessityStudy:
    """Returns the study with the scores and differences of another comparison of the same models and prompts."""
    scores = read_table(source.directory / "scores.csv")
    comparison = read_comparison(source.directory / COMPARISON)
    tasks = set(study.scores["task"])
    return replace(
        study, scores=scores[scores["task"].isin(tasks)], comparison=comparison[comparison["task"].isin(tasks)]
    )


def _arm_name(text: str) -> str:
    """Returns an arm's name in folders and tables: data-negative:freeze-llm:4 is data-negative-freeze-llm4."""
    return re.sub(":(?=[a-z])", "-", text.partition("=")[0]).replace(":", "")


def _read_runs(directory: Path, settings: dict[str, Any], gaps: list[str]) -> list[ArmRun]:
    """Returns the arms that were trained to their end, in the settings' order, and adds what is missing to the gaps."""
    runs = []
    for arm in map(_arm_name, settings["arms"]):
        for seed in settings["seeds"]:
            name, path = f"{arm}, seed {seed}", directory / "arms" / f"{arm}-seed{seed}"
            try:
                state = read_run(path)
            except ValueError:
                gaps.append(f"{name}: not trained")
                continue
            if state["status"] != "finished":
                error = state["attempts"][-1].get("error", "it still runs, or was killed")
                gaps.append(f"{name}: training has not finished: {error}")
            if (path / "freeze_report.json").is_file() and (path / "metrics.csv").is_file():
                proof = json.loads((path / "freeze_report.json").read_text(encoding="utf-8"))
                runs.append(ArmRun(arm, seed, proof, read_table(path / "metrics.csv")))
    return runs


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
                    "ability": ability,
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
    table = table[(table["seed"].astype(str) == POOLED) == pooled]
    rows = []
    for _, row in table.iterrows():
        rows.append(
            {
                "ability": row["ability"],
                "arm": row["arm"],
                "against": row["against"],
                "seed": _seed(row["seed"]),
                "about": row_about(row) if row["n"] else "",
                "n": int(row["n"]),
                "difference": points(row["difference"]),
                "interval": interval(row["low"], row["high"]),
                "flips": ""
                if row["num_gained"] != row["num_gained"]
                else f"+{int(row['num_gained'])} / {MINUS}{int(row['num_lost'])}",
                "p_holm": probability(row["p_holm"]),
                "significant": is_significant(row),
                "verdict": verdict(row) if row["n"] else "nothing to compare",
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


def draw(study: NecessityStudy, *, own_tables: bool = True) -> dict[str, str]:
    """Draws the figures that the tables allow, and returns them by name, inlined.

    Args:
        own_tables: the tables are those in the study's folder; then the figures are written beside them.
    """
    in_deltas = set(study.layers["phase"])
    drawn = replace(study, runs=[run for run in study.runs if run.arm in in_deltas])
    allowed = {
        "gains": not _against_sft(study).empty,
        "gain_kept": "full" in study.arms and not _against_sft(study).empty,
        "rewards": any(REWARD in run.metrics for run in study.runs),
        "deltas": bool(drawn.runs),
    }
    draws: dict[str, Callable[[], Figure | None]] = {
        name: partial(function, drawn if name == "deltas" else study)
        for name, function in FIGURES.items()
        if allowed[name]
    }
    if not own_tables:
        drawings = {name: function() for name, function in draws.items()}
        return {name: inline_drawing(drawing) for name, drawing in drawings.items() if drawing is not None}
    folder = study.directory / "figures"
    save_figures(folder, draws)
    return {name: inline_file(folder / f"{name}.png") for name in draws}


def _against_sft(study: NecessityStudy) -> "pd.DataFrame":
    return study.comparison[(study.comparison["against"] == "sft") & (study.comparison["metric"] == ACCURACY)]


def _lead_figure(study: NecessityStudy, images: dict[str, str]) -> parts.Figure | None:
    """Returns the figure that answers the page's question."""
    if "gains" not in images:
        return None
    num_prompts = [f"{ability}: n = {n}" for ability, n in _num_prompts(study).items()]
    seeds = len({run.seed for run in study.runs})
    scopes = _scopes(study)
    rows = _against_sft(study)
    num_tests = rows.loc[rows["seed"].astype(str) == POOLED, "num_tests"].max()
    return parts.Figure(
        source=images["gains"],
        alt="Change in accuracy from SFT, per arm and ability",
        caption=f"Accuracy of each arm minus that of SFT on the same held-out prompts ({'; '.join(num_prompts)}; "
        f"{seeds} training seed{'' if seeds == 1 else 's'}), with 95 % intervals over {covers(scopes)}. Dashed: the "
        f"change of {FULL}, with nothing frozen. Marks are filled if the change is significant after correction for "
        f"{counted_tests(num_tests)}, hollow if not. A block’s change was necessary where freezing the block loses "
        "that gain.",
    )


def _arms(rows: "pd.DataFrame") -> "pd.DataFrame":
    return rows[~rows["arm"].isin([BASE, START]) & (rows["n"] > 0)]


def _num_prompts(study: NecessityStudy) -> dict[str, int]:
    rows = {ability: study.pooled(ability, ACCURACY, START) for ability in study.abilities}
    return {ability: int(own["n"].max()) for ability, own in rows.items() if not own.empty}


def _scopes(study: NecessityStudy) -> list[str]:
    """Returns what the differences of the arms from the start are about."""
    rows = _against_sft(study)
    rows = rows[(rows["seed"].astype(str) == POOLED) & (rows["n"] > 0) & (rows["arm"] != BASE)]
    return list(rows["scope"])


def necessity_values(output: Output, compared: Sequence[Output] = ()) -> dict[str, Any]:
    """Returns what the template shows of a study.

    Args:
        compared: comparisons of trained models on the same page; one with the same differences is quoted.
    """
    import yaml

    study, gaps = read_partial(output)
    source = source_of(output, compared)
    if source is not None:
        study = quote(study, source)
    attempt = study.run["attempts"][-1]
    whole = bool(study.runs)
    images = draw(study, own_tables=source is None)
    proofs = proof_rows(study)
    pooled = study.comparison[study.comparison["seed"].astype(str) == POOLED]
    accuracy = pooled[pooled["metric"] == ACCURACY]
    values = {
        "name": study.directory.resolve().name,
        "gaps": gaps,
        "answer": answer(study),
        "about": about(_scopes(study)),
        "covers": covers(_scopes(study)),
        "could_find": [
            sentence
            for against in (START, FULL)
            if (sentence := could_find(_arms(accuracy[accuracy["against"] == against]), against))
        ],
        "margins": MARGINS,
        "source": "" if source is None else source.name,
        "asked_otherwise": source is None and bool(compared) and len(accuracy) > 0,
        "corrections": corrections(accuracy[accuracy["seed"].astype(str) == POOLED]) if len(accuracy) else "",
        "warning": weaker_start(accuracy.assign(label=accuracy["ability"]), START, FULL),
        "lead_figure": _lead_figure(study, images),
        "gains": gain_rows(study),
        "beside_full": beside_full(study),
        "arms": arm_rows(study),
        "scores": score_rows(study),
        "levels": draw_levels(study.scores, [BASE, START, *study.arms]),
        "pooled": comparison_rows(study, pooled=True, metric=ACCURACY),
        "pooled_well_formed": comparison_rows(study, pooled=True, metric=WELL_FORMED),
        "per_seed": comparison_rows(study, pooled=False, metric=ACCURACY),
        "proofs": proofs,
        "proof": proof_sentence(proofs),
        "rollouts": rollout_rows(study),
        "images": images,
        "partition": study.partition if whole else {},
        "num_layers": sum(len(layers) for layers in study.partition.values()) if whole else 0,
        "num_seeds": len({run.seed for run in study.runs}),
        "attempt": attempt,
        "num_attempts": len(study.run["attempts"]),
        "command": "python -m train.necessity " + shlex.join(attempt["argv"][1:]).replace(" --collect true", ""),
        "settings": study.run["settings"],
        "files": {
            path: yaml.safe_dump(values, sort_keys=False)
            for path, values in study.run["settings"].get("files", {}).items()
        },
        "has_base": BASE in set(study.scores["model"]),
    }
    shown = {
        "gained": values["gains"],
        "arms": values["arms"],
        "proof": proofs,
        "scores": values["scores"],
        "rewards": "rewards" in images,
        "weights": "deltas" in images,
        "rollouts": values["rollouts"],
        "comparisons": values["pooled"],
    }
    return values | {"titles": {key: title for key, title in TITLES.items() if shown.get(key, True)}}


def _seed(value: Any) -> str:
    if value != value or value == "":
        return ""
    return str(value).removesuffix(".0")
