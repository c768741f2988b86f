"""Where do abilities live? What vision swap and layer skip found, model beside model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.report.figures import draw_depth
from analyze.report.inputs import Output
from analyze.report.parts import (
    LEVEL,
    Figure,
    Part,
    Table,
    inline_drawing,
    listed,
    model_name,
    share,
)
from analyze.swap.scores import PAPER_METRICS
from eval.display.formatting import NOTHING, interval, percent, points, probability
from models.blocks import BLOCKS
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

MODE_WORDS = {"from": "in all layers from k on", "only": "in layer k alone", "window": "in a window of layers from k"}
MOST = 0.5


def model_names(outputs: Sequence[Output]) -> dict[str, Output]:
    """Returns name -> output of a probe that is run a model at a time; the folder is named after the model."""
    last = [output.directory.resolve().name for output in outputs]
    return {
        model_name(name) if last.count(name) == 1 else str(output.directory): output
        for name, output in zip(last, outputs, strict=True)
    }


def swap_part(outputs: Sequence[Output]) -> Part:
    """What the vision swap says."""
    named = model_names(outputs)
    tables = {name: read_table(output.directory / "rates.csv") for name, output in named.items()}
    findings: list[str] = []
    rows, panels = [], {}
    halves: dict[str, list[str]] = {}
    for set_name, task, mode in _keys(tables.values(), ["set", "task", "mode"]):
        lines = {
            name: own
            for name, table in tables.items()
            if not (own := _moved(table, set_name, task, mode)).empty and own["n"].max() > 0
        }
        for name, own in lines.items():
            rows += [_swap_row(set_name, task, mode, name, own, tables[name])]
            if mode == "from" and (end := _half_gone(own)) is not None:
                place = f"{task}: more than half of what moves an answer is read in {_layers_before(end)}"
                halves.setdefault(place, []).append(name)
        findings += _from_findings(task, lines) if mode == "from" else _most_findings(task, mode, lines)
        if lines:
            panels[f"{set_name}, {task}: {MODE_WORDS[mode]}"] = {
                name: own.assign(**{key: 100 * own[column] for key, column in _POINTS.items()})
                for name, own in lines.items()
            }
    controls = [_swap_controls(name, output.directory) for name, output in named.items()]
    figures = []
    if panels:
        caption = (
            "Pairs whose answer moved to the source picture’s, of those answered rightly without a swap, over k, with "
            "95 % Wilson intervals. From left to right less and less of the model sees the other picture."
        )
        figures.append(Figure(source=inline_drawing(draw_depth(panels, "pairs, %", "k")), caption=caption))
    return Part(
        title="Vision swap",
        answers=[f"{place} ({listed(models)})." for place, models in halves.items()],
        what="A question about a target picture is asked while the vision tokens of a source picture, for which the "
        "answer is another, are put in from some layer on. Where the answer still follows the source, the layers that "
        "see it still read the picture; where it stays with the target, reading was over before.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Share of pairs whose answer moved to the source’s, where the swap begins with each block "
                "(right without a swap); last, the paper’s own metric at k = 0 on all pairs.",
                columns=("task", "mode", "model", "n", *(f"k at {block}" for block in BLOCKS), "paper’s metric"),
                rows=rows,
                num_words=3,
            )
        ],
        controls=controls,
        limits=(
            "The pairs are of one kind of picture; a layer that reads other properties may not show.",
            "A swap shows that a layer is enough to move an answer, not that no other could do its work. Models are "
            "compared by whether their intervals overlap, which is careful: a small difference may hide.",
        ),
    )


_POINTS = {"value": "rate", "low": "low", "high": "high"}


def _moved(table: "pd.DataFrame", set_name: str, task: str, mode: str, subset: str = "right") -> "pd.DataFrame":
    chosen = (table["set"] == set_name) & (table["task"] == task) & (table["mode"] == mode)
    own = table[chosen & (table["metric"] == "moved_to_source") & (table["subset"] == subset)]
    return own.sort_values("layer")


def _swap_row(set_name: str, task: str, mode: str, name: str, own: "pd.DataFrame", table: "pd.DataFrame") -> list[str]:
    paper = table[
        (table["set"] == set_name) & (table["task"] == task) & (table["mode"] == mode) & (table["metric"] == "paper")
        & (table["subset"] == "all") & (table["layer"] == 0)
    ].iloc[0]  # fmt: skip
    firsts = [own[own["block"] == block].iloc[0] for block in BLOCKS]
    return [
        task, mode, name, str(int(own["n"].max())), *(_share(row) for row in firsts),
        f"{_share(paper)} ({PAPER_METRICS.get(task, 'moved')})",
    ]  # fmt: skip


def _from_findings(task: str, lines: Mapping[str, "pd.DataFrame"]) -> Iterator[str]:
    """Says up to where the picture is read, models of which the same holds together."""
    ends = {name: _half_gone(own) for name, own in lines.items()}
    for end in dict.fromkeys(ends.values()):
        rates = []
        for name in [name for name in lines if ends[name] == end]:
            first, n = lines[name].iloc[0], int(lines[name]["n"].max())
            after = "" if end is None else f", then {_share(lines[name].set_index('layer').loc[end])}"
            rates.append(f"{name} {_share(first)}{after} (n = {n})")
        if end is None:
            yield (
                f"{task}: at no k is the share of answers that move fallen to half, or they are too rare to say; with "
                f"the source’s picture in all layers {'; '.join(rates)}."
            )
        else:
            kept = _layers_before(end)
            yield (
                f"{task}: more than half of what moves the answer is read in {kept}. Answers that move with the "
                f"source’s picture in all layers, and once {kept} {'keep' if end > 1 else 'keeps'} the target’s: "
                f"{'; '.join(rates)}."
            )


def _most_findings(task: str, mode: str, lines: Mapping[str, "pd.DataFrame"]) -> Iterator[str]:
    """Says in which layer a swap moves most answers, models of which the same holds together."""
    rates: dict[str, list[str]] = {}
    for name, own in lines.items():
        best = own[own["block"] != "none"].nlargest(1, "rate").iloc[0]
        place = f"k = {int(best['layer'])} ({best['block']})"
        rates.setdefault(place, []).append(f"{name} {_share(best)} (n = {int(own['n'].max())})")
    for place, said in rates.items():
        yield f"{task}, swapped {MODE_WORDS[mode]}: most answers move at {place}: {'; '.join(said)}."


def _layers_before(end: int) -> str:
    return "layer 0" if end == 1 else f"layers 0–{end - 1}"


def _half_gone(own: "pd.DataFrame") -> int | None:
    """Returns the first k at which less than half as many answers move; None where even at k = 0 most do not."""
    first = own.iloc[0]
    after = own[own["rate"] < first["rate"] / 2]
    return None if after.empty or first["low"] <= MOST else int(after["layer"].iloc[0])


def _swap_controls(name: str, directory: Path) -> str:
    table = read_table(directory / "controls.csv")
    skipped = read_table(directory / "skipped.csv")["pair_id"].nunique()
    checks = ", ".join(
        f"{control} {int(own['num_equal'].sum() + own['num_tie'].sum())} of {int(own['n'].sum())}"
        for control, own in table.groupby("control", sort=False)
    )
    return f"{name}: pairs that pass: {checks}; {skipped} pairs left out."


def skip_part(outputs: Sequence[Output]) -> Part:
    """What leaving layers out says."""
    named = model_names(outputs)
    tables = {name: read_table(output.directory / "rates.csv") for name, output in named.items()}
    findings, panels = [], {}
    rows: list[list[str]] = []
    block_rows: list[list[str]] = []
    worst: dict[str, list[str]] = {}
    for task, ability in _keys(tables.values(), ["task", "ability"]):
        lines: dict[str, Any] = {}
        costs: dict[str, list[str]] = {}
        for name, table in tables.items():
            own = table[(table["task"] == task) & (table["ability"] == ability)]
            if own.empty:
                continue
            rows += _skip_rows(ability, name, own)
            block_rows += _block_rows(ability, name, own)
            layers = own[own["kind"] == "layers"].sort_values("layer")
            if not layers.empty:
                row = layers.nlargest(1, "drop").iloc[0]
                place = f"{int(row['layer'])} ({row['block']})"
                worst.setdefault(place, []).append(f"{ability} of {name}")
                needed = layers[(layers["p_holm"] < LEVEL) & (layers["drop"] > 0)]
                costs.setdefault(place, []).append(
                    f"{name} {_lost(row)}, with {len(needed)} of {len(layers)} layers beyond chance"
                )
                columns = {"value": "drop", "low": "drop_low", "high": "drop_high"}
                lines[name] = layers.assign(**{key: 100 * layers[column] for key, column in columns.items()})
        findings += [
            f"{ability}: the costliest single layer is {place}: {'; '.join(said)}." for place, said in costs.items()
        ]
        if lines:
            panels[f"{task}: {ability}"] = lines
    figures = []
    if panels:
        figures.append(
            Figure(
                source=inline_drawing(draw_depth(panels, "accuracy lost, points", "decoder layer left out")),
                caption="Accuracy lost when one layer’s output is replaced by its input, against the same problems "
                "with nothing left out; 95 % intervals of the paired difference.",
            )
        )
    return Part(
        title="Layer skip",
        answers=_costliest(worst),
        what="One decoder layer, or a whole block of them, is left out (its skip connection stays) while the model "
        "answers. What accuracy that costs says how much an answer needs the layer.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Percent right with nothing left out, and points lost without a whole block, paired on the "
                "same problems, with 95 % intervals; *: beyond chance (McNemar, corrected).",
                columns=("ability", "model", "n", "accuracy", *BLOCKS),
                rows=block_rows,
                num_words=2,
            ),
            Table(
                caption="Accuracy lost, paired on the same problems; p-values exact (McNemar), corrected over the rows "
                "of a kind (Holm).",
                columns=("ability", "model", "left out", "n", "accuracy", "lost", "95 % interval", "p, corrected"),
                rows=rows,
                num_words=3,
                folded=len(rows) > 24,
            ),
        ],
        controls=[_skip_controls(name, output.directory) for name, output in named.items()],
        limits=(
            "A layer left out also hands on what it was never trained to hand on: a loss shows that the layer is "
            "needed as the model stands, not that it holds the ability. First layers always cost much.",
        ),
    )


def _costliest(worst: Mapping[str, Sequence[str]]) -> list[str]:
    """Says which single layer costs most, in which abilities and models."""
    if len(worst) == 1:
        return [f"the costliest single layer is {next(iter(worst))} for every model and ability."]
    return [f"the costliest single layer is {layer} for {listed(names)}." for layer, names in worst.items()]


def _block_rows(ability: str, name: str, own: "pd.DataFrame") -> Iterator[list[str]]:
    """Yields what a model loses without each block, where blocks were left out."""
    blocks = own[own["kind"] == "blocks"].set_index("configuration")
    if not blocks.empty:
        whole = own[own["kind"] == "none"].iloc[0]
        lost = [f"{_drop(blocks.loc[block])}{_star(blocks.loc[block])}" for block in BLOCKS]
        yield [ability, name, str(int(whole["n"])), _share(whole, "accuracy"), *lost]


def _star(row: Any) -> str:
    return "*" if row["p_holm"] < LEVEL else ""


def _lost(row: Any) -> str:
    return _drop(row, " points")


def _drop(row: Any, unit: str = "") -> str:
    return f"{points(row['drop'], sign=False)}{unit} {interval(row['drop_low'], row['drop_high'])}"


def _skip_rows(ability: str, name: str, own: "pd.DataFrame") -> Iterator[list[str]]:
    for _, row in own[own["kind"] != "none"].iterrows():
        yield [
            ability, name, str(row["configuration"]), str(int(row["num_compared"])), percent(row["accuracy"]),
            points(row["drop"], sign=False), interval(row["drop_low"], row["drop_high"]), probability(row["p_holm"]),
        ]  # fmt: skip


def _skip_controls(name: str, directory: Path) -> str:
    parts = []
    for _, row in read_table(directory / "controls.csv").iterrows():
        verdict = "as it must" if row["holds"] else "which FAILS the control"
        parts.append(f"{int(row['num_equal_replies'])} of {int(row['n'])} replies to {row['task']}, {verdict}")
    return f"{name}: nothing left out gives the plain model’s own answer: {'; '.join(parts)}."


def _keys(tables: Any, columns: list[str]) -> list[tuple[Any, ...]]:
    """Returns the groups that any of the tables has, in their order."""
    return list(
        dict.fromkeys(
            key for table in tables for key in table[columns].drop_duplicates().itertuples(index=False, name=None)
        )
    )


def _share(row: Any, column: str = "rate") -> str:
    return NOTHING if row[column] != row[column] else share(row[column], row["low"], row["high"])
