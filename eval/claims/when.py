"""When does RL help? The statements of arXiv 2603.01301, each as a rule on what was measured, with a verdict.

The paper studies medical vision-language models along three axes: vision, supervised fine-tuning and RL. Its abstract
says that RL "primarily sharpens the output distribution" where the start has support (a high pass@K), while supervised
fine-tuning "expands support and makes RL effective". The rules read

    --tower FOLDER       of eval.tower with --encoder: each model against the best vision-only encoder
    --support FOLDER     of eval.support --by modality: the mean over all modalities, and with and without support
    --transfer FOLDER    of eval.transfer: the pooled contrasts

A rule expects a difference that is positive, negative, none (the 90 % interval lies within 5 points of zero), not
positive or not negative (its end lies within 5 points). A p-value that its own table has corrected is quoted, so that a
difference has the same one everywhere; the others are Holm-corrected together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.claims.tables import CONTRADICTED, SUPPORTED, UNDECIDED, UNMEASURED, verdict
from eval.compare.scope import LEVEL, MARGIN, read_current
from eval.display.formatting import interval, points, probability
from eval.statistics.intervals import CONFIDENCE, holm
from eval.statistics.pooled import CHECKPOINTS, TRAINING
from eval.support.gaps import DIFFERENCE, SOMETIMES_LESS_NEVER, WITH, WITHOUT
from eval.support.samples import GAP, PASS
from eval.support.tables import ALL
from eval.transfer.models import RL
from eval.transfer.tables import OTHERS, OWN_LESS_OTHERS, POOLED

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2603.01301"
VISION, SUPPORT, SHARPENING, TRANSFER = "vision", "support", "sharpening", "transfer"
POSITIVE, NEGATIVE, NO_DIFFERENCE, NOT_POSITIVE, NOT_NEGATIVE = (
    "positive", "negative", "none", "not positive", "not negative",
)  # fmt: skip
"""What a rule expects of its difference."""
BASE = "base"
RL_MODELS = ("full", "rl", "data-all", "data-boundary")
"""Models trained with RL on all modalities."""
Tables = Mapping[str, "pd.DataFrame"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A command whose results are read."""

    command: str
    tables: Mapping[str, tuple[str, ...]]
    """Table -> the columns that it must have."""


TESTED = ("low", "high", "p", "equivalent_within", "n", "num_seeds", "scope")
BY_MODALITY = ("task", "ability", "modality", "model", *TESTED)
FILES = {
    "tower": Source(
        command="eval.tower",
        tables={
            "tower": ("probe", "model", "layer", "cv_accuracy"),
            "differences": ("probe", "layer", "model", "against", "family", "difference", "low", "high", "p", "n"),
        },
    ),
    "support": Source(
        command="eval.support",
        tables={
            "changes": (*BY_MODALITY, "against", "metric", "k", "value"),
            "gaps": (*BY_MODALITY, "gain"),
            "bins": (*BY_MODALITY, "bin", "gain"),
        },
    ),
    "transfer": Source(
        command="eval.transfer",
        tables={"contrasts": ("method", "question", "trained_on", "difference", *TESTED)},
    ),
}
"""Argument -> what is read from its folder."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence of the paper as a rule."""

    axis: str
    words: str
    rule: str
    """The difference that it is about."""
    expected: str
    needs: str
    """The argument whose folder it reads."""


TOWER_SEES = Statement(
    axis=VISION, words="The vision tower sees as much as a vision-only encoder", expected=NOT_NEGATIVE, needs="tower",
    rule="accuracy of a linear probe at the tower's best layer less that of the best encoder",
)  # fmt: skip
SFT_SUPPORT = Statement(
    axis=SUPPORT, words="Supervised fine-tuning gives support", expected=POSITIVE, needs="support",
    rule="pass@K of the SFT model less that of the base model",
)  # fmt: skip
OF_RL = {
    "at_one": Statement(
        axis=SHARPENING, words="RL raises accuracy@1", expected=POSITIVE, needs="support",
        rule="pass@1 of the RL model less that of the start",
    ),
    "at_all": Statement(
        axis=SHARPENING, words="RL does not raise pass@K", expected=NOT_POSITIVE, needs="support",
        rule="pass@K of the RL model less that of the start",
    ),
    "gap": Statement(
        axis=SHARPENING, words="RL narrows the gap between pass@K and accuracy@1", expected=NEGATIVE, needs="support",
        rule="pass@K - pass@1 of the RL model less that of the start",
    ),
    WITH: Statement(
        axis=SHARPENING, words="RL helps where the start has support", expected=POSITIVE, needs="support",
        rule="gain at k = 1, mean over modalities in which the start's support was found",
    ),
    WITHOUT: Statement(
        axis=SHARPENING, words="RL helps little where the start has no support", expected=NO_DIFFERENCE,
        needs="support", rule="gain at k = 1, mean over modalities in which the start was shown to have none",
    ),
    DIFFERENCE: Statement(
        axis=SHARPENING, words="RL helps more with support than without", expected=POSITIVE, needs="support",
        rule="the former gain less the latter; in simulations, the choice of modalities lowers it by a point",
    ),
    SOMETIMES_LESS_NEVER: Statement(
        axis=SHARPENING, words="RL helps more on prompts that the start sometimes answers than on those it never does",
        expected=POSITIVE, needs="support", rule="gain at k = 1 by the start's pass rate, sometimes less never",
    ),
}  # fmt: skip
"""Statements about each RL model."""
OF_TRANSFER = {
    OTHERS: Statement(
        axis=TRANSFER, words="RL on one modality helps on the others", expected=POSITIVE, needs="transfer",
        rule="accuracy on the other modalities less the start's, mean over modalities trained on",
    ),
    OWN_LESS_OTHERS: Statement(
        axis=TRANSFER, words="RL on one modality helps on the others as much as on its own", expected=NO_DIFFERENCE,
        needs="transfer", rule="gain on the own modality less the mean gain on the others",
    ),
}  # fmt: skip
"""The abstract asks how gains transfer, and states no direction."""


def read_folders(folders: Mapping[str, str]) -> dict[str, dict[str, "pd.DataFrame"]]:
    """Reads the tables of the folders that are given.

    Args:
        folders: argument -> folder.

    Raises:
        ValueError: if a folder has not the tables of its command, or those of an older version.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name, folder in folders.items():
        command, tables = FILES[name].command, FILES[name].tables
        missing = [file for file in tables if not (Path(folder) / f"{file}.csv").is_file()]
        if missing:
            option = " --by modality" if name == "support" else ""
            raise ValueError(
                f"--{name} {folder} has no {missing[0]}.csv; expected the output directory of {command}{option}"
            )
        found[name] = {
            file: read_current(Path(folder) / f"{file}.csv", command, needed) for file, needed in tables.items()
        }
        if name == "support" and found[name]["changes"].empty:
            raise ValueError(f"{Path(folder) / 'changes.csv'} has no rows; expected a model besides the baseline")
    return found


def when_table(tables: Mapping[str, Tables]) -> "pd.DataFrame":
    """Returns a row per statement, and model if there are several, with its verdict.

    Args:
        tables: argument -> the tables of its folder.
    """
    import pandas as pd

    table = pd.DataFrame([*_vision(tables.get("tower")), *_support(tables.get("support")), *_transfer(tables)])
    for column in ("difference", "low", "high", "p", "p_holm", "equivalent_within", "n", "num_seeds"):
        table[column] = table[column].astype(float) if column in table else np.nan
    tested = table["p"].notna() & table["p_holm"].isna()
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(float))
    table["verdict"] = [judge(row) for row in table.to_dict("records")]
    table["source"] = SOURCE
    return table[list(COLUMNS)]


COLUMNS = (
    "axis", "statement", "verdict", "rule", "expected", "model", "against", "difference", "low", "high", "p", "p_holm",
    "n", "num_seeds", "scope", "equivalent_within", "source",
)  # fmt: skip


def judge(row: Mapping[Any, Any]) -> str:
    """Returns the verdict of a difference on what was expected of it."""
    value, within, p_holm, expected = (row[name] for name in ("difference", "equivalent_within", "p_holm", "expected"))
    if expected in (POSITIVE, NEGATIVE, NO_DIFFERENCE):
        return verdict({POSITIVE: 1, NEGATIVE: -1, NO_DIFFERENCE: 0}[expected], value, within, p_holm)
    if np.isnan(p_holm):
        return UNMEASURED
    against = -value if expected == NOT_NEGATIVE else value  # how far it goes into the direction that was denied
    if against + within - abs(value) < MARGIN:
        return SUPPORTED
    return CONTRADICTED if p_holm < LEVEL and against > 0 else UNDECIDED


def _row(statement: Statement, model: str, against: str, numbers: Mapping[str, Any] | None) -> Row:
    head = {
        "axis": statement.axis, "statement": statement.words, "rule": statement.rule, "expected": statement.expected,
        "model": model, "against": against,
    }  # fmt: skip
    return {**head, "scope": None, **(numbers or {})}


def _numbers(rows: "pd.DataFrame", value: str, *, sign: float = 1.0) -> Row | None:
    """Returns the numbers of the one row; None if there is none."""
    if rows.empty:
        return None
    row = rows.iloc[0]
    ends = sorted((sign * row["low"], sign * row["high"]))
    known = ("p", "p_holm", "equivalent_within", "n", "num_seeds", "scope")
    numbers = {name: row[name] for name in known if name in row}
    return {"difference": sign * row[value], "low": ends[0], "high": ends[1], **numbers}


def _vision(tables: Tables | None) -> Iterator[Row]:
    if tables is None:
        yield _row(TOWER_SEES, "", "", None)
        return
    scores, differences = tables["tower"], tables["differences"]
    against_encoders = differences[differences["family"] == differences["probe"] + ", encoders"]
    encoders = list(against_encoders["against"].unique())
    if not encoders:
        yield _row(TOWER_SEES, "", "", None)
        return
    towers = scores[scores["model"].isin(against_encoders["model"])]
    for (probe, model), own in towers.groupby(["probe", "model"], sort=False):
        rivals = scores[(scores["probe"] == probe) & scores["model"].isin(encoders)]
        best, rival = (rows.sort_values("cv_accuracy", kind="stable").iloc[-1] for rows in (own, rivals))
        rows = against_encoders[
            (against_encoders["probe"] == probe) & (against_encoders["model"] == model)
            & (against_encoders["layer"].astype(str) == str(best["layer"]))
            & (against_encoders["against"] == rival["model"])
        ]  # fmt: skip
        if rows.empty:
            continue
        row = rows.iloc[0]
        # The tables have the 95 % interval alone; over many pictures, the 90 % one is narrower by this factor.
        narrower = NormalDist().inv_cdf(CONFIDENCE) / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        within = abs(row["difference"]) + narrower * (row["difference"] - row["low"])
        numbers = {name: row[name] for name in ("difference", "low", "high", "p", "p_holm", "n") if name in row}
        yield _row(TOWER_SEES, f"{model}, {probe}", str(rival["model"]),
                   {**numbers, "equivalent_within": within, "num_seeds": 1, "scope": CHECKPOINTS})  # fmt: skip


def _support(tables: Tables | None) -> Iterator[Row]:
    if tables is None:
        yield _row(SFT_SUPPORT, "", "", None)
        yield from (_row(statement, "", "", None) for statement in OF_RL.values())
        return
    changes, bins = (_together(tables[name]) for name in ("changes", "bins"))
    start = str(tables["changes"]["against"].iloc[0])
    passes = changes[changes["metric"] == PASS]
    at_all = passes[passes["k"] == passes["k"].max()]
    yield _row(SFT_SUPPORT, start, BASE, _numbers(at_all[at_all["model"] == BASE], "value", sign=-1.0))
    trained = [name for name in dict.fromkeys(map(str, changes["model"])) if name in RL_MODELS]
    for model in trained or [""]:
        rows = {
            "at_one": _numbers(passes[(passes["k"] == 1) & (passes["model"] == model)], "value"),
            "at_all": _numbers(at_all[at_all["model"] == model], "value"),
            "gap": _numbers(changes[(changes["metric"] == GAP) & (changes["model"] == model)], "value"),
            SOMETIMES_LESS_NEVER: _numbers(
                bins[(bins["bin"] == SOMETIMES_LESS_NEVER) & (bins["model"] == model)], "gain"
            ),
        }
        summaries = tables["gaps"][tables["gaps"]["task"] == ALL]
        for label in (WITH, WITHOUT, DIFFERENCE):
            rows[label] = _numbers(summaries[(summaries["modality"] == label) & (summaries["model"] == model)], "gain")
        for name, statement in OF_RL.items():
            yield _row(statement, model, start if model else "", rows[name])


def _together(table: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows over all modalities; those of the one modality if there is no other, else none."""
    own = table[(table["task"] == ALL) & (table["modality"] == ALL)]
    single = table[table["task"] != ALL]
    alone = len(single[["task", "ability", "modality"]].drop_duplicates()) == 1
    return single if own.empty and alone else own


def _transfer(tables: Mapping[str, Tables]) -> Iterator[Row]:
    for question, statement in OF_TRANSFER.items():
        numbers = None
        if "transfer" in tables:
            contrasts = tables["transfer"]["contrasts"]
            own = contrasts[(contrasts["method"] == RL) & (contrasts["question"] == question)]
            pooled = own[own["trained_on"] == POOLED]
            numbers = _numbers(own if pooled.empty else pooled, "difference")
        yield _row(statement, "" if numbers is None else "models of one modality", "", numbers)


def when_row(row: Any) -> dict[str, str]:
    """Returns a row of the table as text."""
    measured = row["p"] == row["p"]
    seeds = int(row["num_seeds"]) if measured else 0
    about = f"{seeds} training seeds" if row["scope"] == TRAINING else "the evaluated checkpoints"
    compares = " with ".join(
        str(row[name]) for name in ("model", "against") if isinstance(row[name], str) and row[name]
    )
    return {
        **{name: str(row[name]) for name in ("axis", "statement", "verdict", "rule", "expected")},
        "compares": compares,
        "difference": points(row["difference"]),
        "interval": interval(row["low"], row["high"]),
        "p_holm": probability(row["p_holm"]),
        "about": f"n = {row['n']:.0f}, {about}" if measured else "",
    }


def when_lines(table: "pd.DataFrame") -> list[str]:
    """Returns a sentence per statement."""
    lines = []
    for row in map(when_row, table.to_dict("records")):
        numbers = f": {row['difference']} {row['interval']}, corrected p = {row['p_holm']}, {row['about']}"
        compares = f" ({row['compares']})" if row["compares"] else ""
        lines.append(f"{row['statement']}{compares}: {row['verdict']}{numbers if row['about'] else ''}")
    return lines
