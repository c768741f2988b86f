"""Where does a model look, and what did training change in that? Parts drawn from the tables of `analyze.attention`."""

from collections.abc import Sequence

from analyze.attention.controls import TEACHER_FORCED
from analyze.report.inputs import Output
from analyze.report.parts import LEVEL, Part, Table, change, corrected, files_as_figures, listed, model_name, share
from eval.display.formatting import interval, percent, points, probability
from models.blocks import BLOCKS
from tracking.tables import read_table

VISION = "vision"
START = "sft"


def attention_part(outputs: Sequence[Output]) -> Part:
    """Where models look."""
    findings: list[str] = []
    rows, figures, controls = [], [], []
    for output in outputs:
        table = read_table(output.directory / "attention.csv")
        own = table[
            (table["measure"] == VISION) & (table["mode"] == TEACHER_FORCED) & (table["part"] == "reply")
            & (table["head"].astype(str) == "mean") & (table["ability"] != "all")
        ]  # fmt: skip
        peaks: dict[str, dict[str, list[str]]] = {}
        for (ability, name, seed), group in own.groupby(["ability", "model", "seed"], sort=False, dropna=False):
            model = model_name(str(name), seed)
            most = group.nlargest(1, "mean").iloc[0]
            where = f"layer {int(most['layer'])} ({most['block']})"
            peak = share(most["mean"], most["low"], most["high"])
            peaks.setdefault(f"{ability} (n = {int(most['n'])})", {}).setdefault(where, []).append(f"{model} ({peak})")
            means = group.groupby("block", sort=False)["mean"].mean()
            rows.append([str(ability), model, str(int(most["n"])), *(percent(means[block]) for block in BLOCKS),
                         f"{where}: {peak}"])  # fmt: skip
        for head, models in peaks.items():
            places = [f"in {where} for {listed(said)}" for where, said in models.items()]
            findings.append(f"{head}: greatest {', '.join(places)}.")
        caption = "Share of a reply’s attention that goes to the vision tokens, per layer, with 95 % intervals."
        figures += files_as_figures(output.directory, {"vision": caption})
        controls += attention_controls(output)
    return Part(
        title="Attention to the picture",
        answers=findings,
        what="For every layer, how much of the attention of the reply’s tokens falls on vision tokens, averaged over "
        "heads and tokens (the paper’s Eq. 1). Teacher-forced: all models read the same reply, so that only weights "
        "differ.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Attention to vision tokens, percent: mean over each block’s layers, and the layer of most.",
                columns=("ability", "model", "n", *BLOCKS, "most"),
                rows=rows,
                num_words=2,
            )
        ],
        controls=controls,
        limits=("Attention shows where a model looks, not what it uses.",),
    )


def attention_controls(output: Output) -> list[str]:
    table = read_table(output.directory / "controls.csv")
    failed = table[~table["passed"].astype(bool)]
    names = ", ".join(dict.fromkeys(table["control"]))
    state = "all passed" if failed.empty else f"FAILED: {', '.join(dict.fromkeys(failed['control']))}"
    skipped = len(read_table(output.directory / "skipped.csv"))
    return [f"{names}: {state}; {skipped} prompts not measured."]


def attention_shift_part(outputs: Sequence[Output]) -> Part | None:
    """What training changed in where models look; None where no models were compared."""
    findings, rows, figures = [], [], []
    baselines: list[str] = []
    answers: list[str] = []
    for output in outputs:
        table = read_table(output.directory / "blocks.csv")
        own = table[
            (table["measure"] == VISION) & (table["mode"] == TEACHER_FORCED) & (table["part"] == "reply")
            & (table["ability"] != "all")
        ]  # fmt: skip
        for (ability, model, against), group in own.groupby(["ability", "model", "against"], sort=False):
            pooled = group[group["seed"].astype(str) == "pooled"]
            chosen = pooled if not pooled.empty else group[group["seed"] == group["seed"].iloc[0]]
            chosen = chosen if not chosen.empty else group
            beyond = chosen[(chosen["p_holm"] < LEVEL) & (chosen["block"] != "all")]
            places = [
                f"{row['block']} {change(row['difference'], row['low'], row['high'])}, {corrected(row['p_holm'])}"
                for _, row in beyond.iterrows()
            ]
            said = f"beyond chance in {listed(places)}" if places else "no difference beyond noise in any block"
            findings.append(f"{model} − {against}, {ability} (n = {int(chosen['n'].max())}): {said}.")
            if against == START and model != "base":
                answers.append(findings[-1])
            for _, row in chosen.iterrows():
                rows.append([str(ability), f"{model} − {against}", str(row["block"]), str(int(row["n"])),
                             points(row["difference"]), interval(row["low"], row["high"]),
                             probability(row["p_holm"])])  # fmt: skip
        baselines += list(dict.fromkeys(own["against"]))
        captions = {
            f"vision-shift-from-{name}": f"Change of the attention to vision tokens from {name}, per layer."
            for name in dict.fromkeys(own["against"])
        }
        figures += files_as_figures(output.directory, captions)
    if not rows:
        return None
    limits = ["Differences are of one text read by all models; on their own replies length and wording differ too."]
    if START not in baselines:
        limits.append(
            f"Models were compared with {listed(baselines)} only, so this says nothing of what RL alone changed: "
            "analyze.attention --baseline sft would."
        )
    return Part(
        title="In where it looks",
        answers=answers,
        what="Attention to the picture, model less model, paired on the same prompts and the same text; in points of "
        "all attention, averaged over a block’s layers.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Change of the attention to vision tokens; p-values corrected over blocks (Holm).",
                columns=("ability", "models", "block", "n", "difference", "95 % interval", "p, corrected"),
                rows=rows,
                num_words=3,
                folded=len(rows) > 16,
            )
        ],
        limits=limits,
    )
