"""Which layers look at the picture, and did training change that? Parts from the tables of `analyze.attention`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyze.attention.controls import TEACHER_FORCED
from analyze.report.inputs import Output
from analyze.report.parts import (
    REWARDED,
    Part,
    Table,
    corrected,
    files_as_figures,
    main_model,
    model_name,
    same_elsewhere,
    share,
)
from analyze.report.probes import FAILED
from eval.compare.scope import LEVEL, about, counted_tests, in_this_run, verdict_of
from eval.display.formatting import MINUS, change, interval, listed, percent, points, probability
from eval.statistics.differences import POOLED
from eval.statistics.pooled import CHECKPOINTS, TRAINING
from models.blocks import BLOCKS
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

VISION = "vision"
START = "sft"


def attention_part(outputs: Sequence[Output]) -> Part:
    """Where models look."""
    findings: list[str] = []
    rows, figures, controls = [], [], []
    cases: dict[tuple[str, str], tuple[str, str, int]] = {}
    failed = False
    for output in outputs:
        table = read_table(output.directory / "attention.csv")
        own = table[
            (table["measure"] == VISION) & (table["mode"] == TEACHER_FORCED) & (table["part"] == "reply")
            & (table["head"].astype(str) == "mean") & (table["ability"] != "all")
        ]  # fmt: skip
        peaks: dict[str, dict[str, list[str]]] = {}
        failed = failed or not read_table(output.directory / "controls.csv")["passed"].astype(bool).all()
        for (ability, name, seed), group in own.groupby(["ability", "model", "seed"], sort=False, dropna=False):
            model = model_name(str(name), seed)
            most = group.nlargest(1, "mean").iloc[0]
            where = f"layer {int(most['layer'])} ({most['block']})"
            peak = share(most["mean"], most["low"], most["high"])
            peaks.setdefault(f"{ability} (n = {int(most['n'])})", {}).setdefault(where, []).append(f"{model} ({peak})")
            cases[str(ability), model] = (where, peak, int(most["n"]))
            means = group.groupby("block", sort=False)["mean"].mean()
            rows.append([str(ability), model, str(int(most["n"])), *(percent(means[block]) for block in BLOCKS),
                         f"{where}: {peak}"])  # fmt: skip
        for head, models in peaks.items():
            places = [f"in {where} for {listed(said)}" for where, said in models.items()]
            findings.append(f"{head}: highest {', '.join(places)}.")
        caption = (
            "Share of a reply’s attention that goes to the vision tokens, per layer; 95 % intervals over new prompts."
        )
        figures += files_as_figures(output.directory, {"vision": caption})
        controls += attention_controls(output)
    return Part(
        title="Attention to the picture",
        answer=(FAILED if failed else "") + (in_this_run(_peak_answer(cases)) if cases else ""),
        what="For every layer, the share of the attention of the reply’s tokens that falls on vision tokens, averaged "
        "over heads and tokens (the paper’s Eq. 1). Teacher-forced: all models read the same reply, so that only their "
        "weights differ.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Attention to vision tokens, percent: mean over each block’s layers, and the layer with the "
                "highest share with its 95 % interval over new prompts only.",
                columns=("ability", "model", "n", *BLOCKS, "highest"),
                rows=rows,
                num_words=2,
            )
        ],
        failed=failed,
        controls=controls,
        limits=("Attention shows which tokens a model looks at, not which it uses.",),
    )


def _peak_answer(cases: dict[tuple[str, str], tuple[str, str, int]]) -> str:
    """Says in a sentence in which layer the main model looks at the picture most, and how far the others agree."""
    if not cases:
        return ""
    name = main_model([model for _, model in cases])
    main = next(case for case in cases if case[1] == name)
    where, peak, n = cases[main]
    num_same = sum(other[0] == where for other in cases.values()) - 1
    agreeing = same_elsewhere(num_same, len(cases) - 1, "cases (models and abilities)")
    place = f"{main[0]}, {name}, n = {n}"
    return f"Attention to the picture is highest in {where}: {peak} of all attention ({place}){agreeing}."


def attention_controls(output: Output) -> list[str]:
    table = read_table(output.directory / "controls.csv")
    failed = table[~table["passed"].astype(bool)]
    names = ", ".join(dict.fromkeys(table["control"]))
    state = "all passed" if failed.empty else f"FAILED: {', '.join(dict.fromkeys(failed['control']))}"
    skipped = len(read_table(output.directory / "skipped.csv"))
    return [f"{names}: {state}; {skipped} prompts skipped."]


def _no_change(blocks: "pd.DataFrame", num_tests: int) -> str:
    """Says that no block changed significantly, with the largest difference."""
    own = blocks[blocks["block"] != "all"]
    own = own if len(own) else blocks
    row = own.iloc[int(own["difference"].abs().to_numpy().argmax())]
    largest = change(row["difference"], row["low"], row["high"])
    words = f"no significant change in any block after correction for {counted_tests(num_tests)}"
    return f"{words}; the largest is {largest} in {row['block']}"


def attention_shift_part(outputs: Sequence[Output]) -> Part | None:
    """What training changed in where models look; None where no models were compared."""
    findings, rows, figures = [], [], []
    baselines: list[str] = []
    answers: list[str] = []
    scopes: list[str] = []
    for output in outputs:
        table = read_table(output.directory / "blocks.csv")
        own = table[
            (table["measure"] == VISION) & (table["mode"] == TEACHER_FORCED) & (table["part"] == "reply")
            & (table["ability"] != "all")
        ]  # fmt: skip
        for (ability, model, against), group in own.groupby(["ability", "model", "against"], sort=False):
            pooled = group[group["seed"].astype(str) == POOLED]
            chosen = pooled if not pooled.empty else group[group["seed"] == group["seed"].iloc[0]]
            chosen = chosen if not chosen.empty else group
            scopes.append(CHECKPOINTS if pooled.empty else TRAINING)
            num_seeds = int(chosen["num_seeds"].max())
            where = "in this run" if pooled.empty else f"over {num_seeds} training seeds"
            beyond = chosen[(chosen["p_holm"] < LEVEL) & (chosen["block"] != "all")]
            places = [
                f"{row['block']} {change(row['difference'], row['low'], row['high'])}, {corrected(row['p_holm'])}"
                for _, row in beyond.iterrows()
            ]
            num_tests = int(chosen["p_holm"].notna().sum())
            said = f"significant change in {listed(places)}" if places else _no_change(chosen, num_tests)
            n = int(chosen["n"].max())
            findings.append(f"{model} {MINUS} {against}, {ability} {where} (n = {n}): {said}.")
            if against == START and model in REWARDED:
                answers.append(findings[-1])
            for _, row in chosen.iterrows():
                rows.append([str(ability), f"{model} {MINUS} {against}", str(row["block"]),
                             "checkpoints" if pooled.empty else f"training, {num_seeds} seeds", str(int(row["n"])),
                             points(row["difference"]), interval(row["low"], row["high"]), probability(row["p_holm"]),
                             verdict_of(row["p_holm"], row["low"], row["high"], num_tests)])  # fmt: skip
        baselines += list(dict.fromkeys(own["against"]))
        captions = {
            f"vision-shift-from-{name}": f"Change in the attention to vision tokens from {name}, per layer."
            for name in dict.fromkeys(own["against"])
        }
        figures += files_as_figures(output.directory, captions)
    if not rows:
        return None
    limits = [
        "All models read the same text. On replies of their own, length and wording differ too.",
    ]
    if START not in baselines:
        limits.append(
            f"Models were compared only with {listed(baselines)}, so the change from the start of RL is unknown: "
            "analyze.attention --baseline sft measures it."
        )
    return Part(
        title="Change in attention",
        answer=" ".join(answers or findings[:1]),
        about=about(scopes),
        what="Attention to the picture, one model minus another, paired on the same prompts and the same text; in "
        "points of all attention, averaged over the layers of a block.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Change in the attention to vision tokens; p-values corrected over the blocks of a "
                "comparison (Holm).",
                columns=(
                    "ability",
                    "models",
                    "block",
                    "about",
                    "n",
                    "difference",
                    "95 % interval",
                    "p, corrected",
                    "verdict",
                ),
                rows=rows,
                num_words=4,
            )
        ],
        limits=limits,
    )
