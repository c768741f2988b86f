"""How large is the change of the weights, and where? Parts drawn from the tables of `analyze.deltas`."""

from collections.abc import Sequence
from typing import Any

from analyze.report.inputs import Output
from analyze.report.parts import REWARDED, Part, Table, files_as_figures, model_name
from eval.compare.scope import in_this_run
from eval.display.formatting import MINUS, NOTHING, listed, percent
from models.blocks import BLOCKS
from tracking.tables import read_table

START_PHASE = "sft"


def delta_part(outputs: Sequence[Output]) -> Part:
    """What the weights' changes say."""
    findings, rows, figures = [], [], []
    answers: dict[str, str] = {}
    for output in outputs:
        table = read_table(output.directory / "blocks.csv")
        for (phase, seed), own in table.groupby(["phase", "seed"], sort=False, dropna=False):
            name = _phase_name(phase, seed)
            by_block = own.set_index("block")
            sizes = _sizes(name, by_block)
            findings.append(f"{sizes}{_floor(by_block)}")
            answers[str(phase)] = sizes
            for block, row in by_block.iterrows():
                rows.append([name, str(block), f"{100 * row['relative_energy']:.3g}", *_floor_cells(row)])
        captions = {
            "energy": "Frobenius norm of the change divided by that of the weights before it, per region and layer.",
            "changed": "Share of stored elements that changed.",
            "decay": "How fast the singular values of the change decay (the paper’s Eq. 3), beside the same changes "
            "at shuffled positions.",
            "ranks": "Rank measures of the change, beside those of the shuffled changes.",
        }
        figures += files_as_figures(output.directory, captions)
    return Part(
        title="Change in the weights",
        answer=_answer(answers),
        what="Relative size: the Frobenius norm of after − before divided by that of before, over all tensors of a "
        "block. Rounding floor: the change that storing the weights in their dtype would cause by rounding alone.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Change per block: relative size in percent, as a multiple of the rounding floor, share of "
                "elements that changed, and the number of tensors that are identical / at the floor / above it.",
                columns=("change", "block", "size, %", "× floor", "elements, %", "tensors"),
                rows=rows,
                num_words=2,
            )
        ],
        controls=[
            f"{output.name}: subtraction in fp64 is exact; identical tensors have a change of exactly zero."
            for output in outputs
        ],
        limits=(
            "All weights are counted, so there is no sampling error. How much another training seed would differ can "
            "be seen only where the table has several seeds.",
            "The size of a change does not say whether the model uses it.",
        ),
    )


def _answer(sizes: dict[str, str]) -> str:
    """Returns the sentence of full RL; without it of another phase of RL, or of SFT."""
    after = [phase for phase in sizes if phase != START_PHASE]
    said = next((sizes[phase] for phase in (*REWARDED, *after, START_PHASE) if phase in sizes), "")
    return in_this_run(said) if said else ""


def _sizes(name: str, by_block: Any) -> str:
    sizes = {block: float(size) for block, size in by_block["relative_energy"].items() if block in BLOCKS}
    if not sizes:
        return f"{name}: no decoder block was measured."
    if not any(sizes.values()):
        return f"{name}: no weight of the decoder changed."
    largest, smallest = max(sizes, key=lambda key: sizes[key]), min(sizes, key=lambda key: sizes[key])
    words = listed([f"{_two_digits(100 * size)} % in {block}" for block, size in sizes.items()])
    ratio = f", {sizes[largest] / sizes[smallest]:.2f} times that of {smallest}" if sizes[smallest] else ""
    return f"{name}: the change relative to the norm of the weights is {words}; it is largest in {largest}{ratio}."


def _floor(by_block: Any) -> str:
    """Says how many tensors moved by more than rounding, where that was measured."""
    if "num_above_floor" not in by_block:
        return ""
    total = by_block[["num_identical", "num_at_floor", "num_above_floor"]].sum()
    return (
        f" Of {int(total.sum())} tensors, {int(total['num_above_floor'])} changed by more than rounding explains, "
        f"{int(total['num_at_floor'])} by no more than rounding, and {int(total['num_identical'])} not at all."
    )


def _two_digits(value: float) -> str:
    return f"{value:#.2g}".rstrip(".") if value else "0"


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
