"""How large is the change, and what does it do? Weight deltas, and differences between models with their intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyze.report.figures import draw_differences
from analyze.report.inputs import Output
from analyze.report.parts import (
    LEVEL,
    Figure,
    Part,
    Table,
    change,
    corrected,
    files_as_figures,
    inline_drawing,
    listed,
    model_name,
    share,
)
from eval.claims.published import HYBRIDS
from eval.display.formatting import MINUS, NOTHING, interval, percent, points, probability
from eval.statistics.pairing import ABILITY, ACCURACY
from models.blocks import BLOCKS
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

START_PHASE = "sft"
UNDEFINED = float("nan")
METRIC_WORDS = {ACCURACY: "accuracy", ABILITY: "by the paper’s definition"}


def has_splices(output: Output) -> bool:
    """True for a comparison in which hybrids of two models stand."""
    return bool(set(read_table(output.directory / "comparison.csv")["arm"]) & set(HYBRIDS))


def delta_part(outputs: Sequence[Output]) -> Part:
    """What the weights' changes say."""
    findings, answers, rows, figures = [], [], [], []
    for output in outputs:
        table = read_table(output.directory / "blocks.csv")
        for (phase, seed), own in table.groupby(["phase", "seed"], sort=False, dropna=False):
            name = _phase_name(phase, seed)
            by_block = own.set_index("block")
            sizes = _sizes(name, by_block)
            findings.append(f"{sizes}{_floor(by_block)}")
            if phase != START_PHASE:
                answers.append(sizes)
            for block, row in by_block.iterrows():
                rows.append([name, str(block), f"{100 * row['relative_energy']:.3g}", *_floor_cells(row)])
        captions = {
            "energy": "Frobenius norm of the change relative to the weights it started from, per region and layer.",
            "changed": "Share of stored elements that differ.",
            "decay": "How fast singular values of the change fall off (the paper’s Eq. 3), with that of the same "
            "changes at shuffled places.",
            "ranks": "Rank measures of the change, with those of the shuffled changes.",
        }
        figures += files_as_figures(output.directory, captions)
    return Part(
        title="In its weights",
        answers=answers,
        what="The norm of after − before over the norm of before (relative energy), over all tensors of a block. The "
        "floor is what storing the weights in few bits would make by rounding alone.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Change per block: relative size in percent, multiple of the rounding floor, share of elements "
                "that differ, and tensors that are unchanged / at the floor / above it.",
                columns=("change", "block", "size, %", "× floor", "elements, %", "tensors"),
                rows=rows,
                num_words=2,
                folded=len(rows) > 24,
            )
        ],
        controls=[
            f"{output.name}: exact subtraction in fp64; unchanged tensors count as exactly zero." for output in outputs
        ],
        limits=(
            "Weights are counted whole, so there is no sampling error here; how much another training seed would "
            "differ shows only where several seeds stand in the table.",
            "Size says nothing about use.",
        ),
    )


def _sizes(name: str, by_block: Any) -> str:
    sizes = {block: float(size) for block, size in by_block["relative_energy"].items() if block in BLOCKS}
    if not sizes:
        return f"{name}: no decoder block was measured."
    if not any(sizes.values()):
        return f"{name}: no weight of the decoder differs."
    largest, smallest = max(sizes, key=lambda key: sizes[key]), min(sizes, key=lambda key: sizes[key])
    words = listed([f"{block} by {_two_digits(100 * size)} %" for block, size in sizes.items()])
    ratio = f", {sizes[largest] / sizes[smallest]:.2f} times that of {smallest}" if sizes[smallest] else ""
    return f"{name} moved {words} of the norm; {largest} most{ratio}."


def _floor(by_block: Any) -> str:
    """Says how many tensors moved by more than rounding, where that was measured."""
    if "num_above_floor" not in by_block:
        return ""
    total = by_block[["num_identical", "num_at_floor", "num_above_floor"]].sum()
    return (
        f" Of {int(total.sum())} tensors {int(total['num_above_floor'])} moved by more than rounding makes, "
        f"{int(total['num_at_floor'])} cannot be told from rounding, {int(total['num_identical'])} did not change."
    )


def _two_digits(value: float) -> str:
    return f"{value:#.2g}".rstrip(".")


def _floor_cells(row: Any) -> list[str]:
    if "num_above_floor" not in row.index:
        return [NOTHING] * 3
    over = row["energy_over_rounding"]
    return [
        f"{over:.3g}" if over == over else NOTHING,
        percent(row["changed_frac"]),
        f"{int(row['num_identical'])} / {int(row['num_at_floor'])} / {int(row['num_above_floor'])}",
    ]


def _phase_name(phase: Any, seed: Any) -> str:
    if phase == START_PHASE:
        return f"sft {MINUS} base"
    return f"{model_name(phase, seed)} {MINUS} sft"


def ability_part(outputs: Sequence[Output]) -> Part:
    """What models can do, beside the one that they started from."""
    return _comparison_part(
        outputs,
        title="In what it can do",
        what="Every model answers the same held-out prompts, greedily. Accuracy is the share of right answers. The "
        "paper defines two abilities otherwise: vision is right with the picture and wrong with a black one, "
        "vision-to-reasoning right with the picture and right from a description of it (Eqs. 4 to 6).",
    )


def splice_part(outputs: Sequence[Output]) -> Part:
    """What hybrids of two models can do."""
    return _comparison_part(
        outputs,
        title="Splices",
        what="Decoder blocks of the model before RL (in, the paper’s IN) and after it (rl) are put together untrained: "
        "in-rl-rl has early layers of in, mid and late layers of rl. What a splice gains over in, RL’s layers carried "
        "over; gain kept is that as a share of RL’s own gain, given only where that gain is beyond doubt.",
        limits=(
            "All parts outside of the decoder (vision tower, embeddings, norm and head) are of one donor; what RL "
            "changed there does not show.",
            "A splice that loses may lose by misfit of its parts, not for want of what RL learned.",
        ),
    )


def _comparison_part(outputs: Sequence[Output], *, title: str, what: str, limits: Sequence[str] = ()) -> Part:
    findings, answers, rows, figures, score_rows = [], [], [], [], []
    for output in outputs:
        directory = output.directory
        comparison, scores = read_table(directory / "comparison.csv"), read_table(directory / "scores.csv")
        baseline, reference = output.settings["baseline"], output.settings.get("reference")
        pooled = comparison[comparison["seed"].astype(str) == "pooled"]
        chosen = _measured(pooled)
        against = chosen[chosen["against"] == baseline]
        for label, own in against.groupby("label", sort=False):
            by_arm = own.set_index("arm")
            trained = by_arm.drop(index="base", errors="ignore")
            findings.append(_ability_finding(str(label), by_arm, baseline, reference))
            answers.append(_ability_answer(str(label), trained, baseline, reference))
        for _, row in chosen.iterrows():
            rows.append([
                row["ability"], row["metric"], f"{row['arm']} {MINUS} {row['against']}", str(int(row["n"])),
                points(row["difference"]), interval(row["low"], row["high"]), probability(row["p_holm"]),
                points(row["detectable"], sign=False), "" if row["arm"] in (reference, "base") else _kept(row),
            ])  # fmt: skip
        score_rows += _score_rows(scores)
        for metric, own in against.groupby("metric", sort=False):
            caption = (
                f"{METRIC_WORDS[str(metric)].capitalize()}: difference from {baseline} on the same prompts, points, "
                "95 % intervals over prompts and training seeds; orange: beyond chance after correction (Holm)."
            )
            drawing = draw_differences(own, list(dict.fromkeys(own["arm"])), f"model − {baseline}, points")
            figures.append(Figure(source=inline_drawing(drawing), caption=caption))
    return Part(
        title=title,
        what=what,
        answers=answers,
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="What each model can do: percent right with Wilson’s interval, the share of well-formed "
                "answers, and tokens a reply.",
                columns=("model", "ability", "n", "accuracy", "ability score", "well-formed", "tokens"),
                rows=score_rows,
                num_words=2,
                folded=len(score_rows) > 16,
            ),
            Table(
                caption="Differences, paired on the same prompts (bootstrap crossed over seeds and prompts; p "
                "corrected by Holm). Detectable: the smallest difference that would be found four times in five.",
                columns=("ability", "metric", "models", "n", "difference", "95 % interval", "p, corrected",
                         "detectable", "gain kept"),
                rows=rows,
                num_words=3,
                folded=len(rows) > 24,
            ),
        ],
        limits=limits or ("Greedy answers to prompts of one source; other kinds of tasks may come out otherwise.",),
    )  # fmt: skip


def _measured(pooled: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows of accuracy, and of the paper's definition where that is another, with a label each."""
    import pandas as pd

    kept = []
    for ability, own in pooled[pooled["n"] > 0].groupby("ability", sort=False):
        accuracy, defined = own[own["metric"] == ACCURACY], own[own["metric"] == ABILITY]
        if list(defined["difference"]) in ([], list(accuracy["difference"])):
            kept.append(accuracy.assign(label=ability))
        else:
            kept += [rows.assign(label=f"{ability}, {METRIC_WORDS[metric]}")
                     for metric, rows in ((ACCURACY, accuracy), (ABILITY, defined))]  # fmt: skip
    return pd.concat(kept) if kept else pooled.iloc[:0].assign(label="")


def _ability_finding(ability: str, own: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says all differences of an ability from the baseline."""
    parts = []
    if reference in own.index:
        parts.append(f"{reference} {MINUS} {baseline} is {difference_words(own.loc[reference])}")
    others = _others(own, reference)
    beyond = others[others["p_holm"] < LEVEL]
    if len(others) and beyond.empty:
        largest = others["detectable"].max()
        found = f" ({points(largest, sign=False)} points would be found four times in five)"
        parts.append(f"{_counted(0, others)} beyond noise{found if largest == largest else ''}")
    elif len(others):
        named = [f"{arm} {change(row['difference'], row['low'], row['high'])}" for arm, row in beyond.iterrows()]
        parts.append(f"{_counted(len(beyond), others)} beyond chance: {listed(named)}")
    if "base" in own.index and reference != "base":
        parts.append(f"base {MINUS} {baseline} is {difference_words(own.loc['base'])}")
    return f"{ability} (n = {int(own['n'].max())}): {'; '.join(parts)}."


def _ability_answer(ability: str, own: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says the same in brief, for the summary."""
    parts = []
    others = _others(own, reference)
    beyond = others[others["p_holm"] < LEVEL].sort_values("difference")
    if reference in own.index:
        row: Any = own.loc[reference]
        verdict = "beyond chance" if row["p_holm"] < LEVEL else "no difference beyond noise"
        change_ = change(row["difference"], row["low"], row["high"])
        parts.append(f"{reference} {MINUS} {baseline} is {change_}, {verdict}")
    if len(beyond) or (len(others) and (not parts or row["p_holm"] < LEVEL)):
        ends = [f"{points(beyond.iloc[end]['difference'])} ({beyond.index[end]})" for end in (0, -1) if len(beyond)]
        said = "" if beyond.empty else f", {' to '.join(dict.fromkeys(ends))}"
        parts.append(f"{_counted(len(beyond), others)} beyond {'chance' if len(beyond) else 'noise'}{said}")
    return f"{ability}: {'; '.join(parts)}."


def _others(own: "pd.DataFrame", reference: str | None) -> "pd.DataFrame":
    return own.drop(index=[name for name in (reference, "base") if name in own.index])


def _counted(number: int, others: "pd.DataFrame") -> str:
    what = "splices" if set(others.index) <= set(HYBRIDS) else "other models" if len(others) > 1 else "other model"
    return f"{number or 'none'} of {len(others)} {what}"


def difference_words(row: Any) -> str:
    """Says a difference with its interval and whether it is one."""
    head = f"{change(row['difference'], row['low'], row['high'])}, {corrected(row['p_holm'])}"
    return head if row["p_holm"] < LEVEL else f"{head}: no difference beyond noise"


def _kept(row: Any) -> str:
    kept = row.get("gain_kept", UNDEFINED)
    if kept != kept:
        return ""
    low, high = (f"{100 * row[f'gain_kept_{end}']:.0f}" for end in ("low", "high"))
    return f"{100 * kept:.0f} % [{low}, {high}]".replace("-", MINUS)


def _score_rows(scores: "pd.DataFrame") -> list[list[str]]:
    rows = []
    for _, row in scores.iterrows():
        rows.append([
            model_name(str(row["model"]), row["seed"]), str(row["ability"]), str(int(row["n"])),
            share(row["accuracy"], row["low"], row["high"]),
            share(row["ability_score"], row["ability_low"], row["ability_high"])
            if row["ability_score"] == row["ability_score"] else NOTHING,
            percent(row["well_formed_frac"]), f"{row['mean_tokens']:.1f}",
        ])  # fmt: skip
    return rows
