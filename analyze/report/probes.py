"""Which layers read the picture, and which does an answer need? Parts of vision swap and layer skip."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.report.figures import draw_depth
from analyze.report.inputs import Output
from analyze.report.parts import Figure, Part, Table, inline_drawing, main_model, model_name, same_elsewhere, share
from analyze.swap.scores import PAPER_METRICS
from eval.compare.scope import LEVEL, counted_tests, in_this_run, verdict_of
from eval.display.formatting import NOTHING, change, interval, percent, points, probability
from models.blocks import BLOCKS
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

MODE_WORDS = {"from": "in all layers from k on", "only": "in layer k alone", "window": "in a window of layers from k"}
FAILED = "A control failed, so this is not to be relied on. "
MOST = 0.5


def model_names(outputs: Sequence[Output]) -> dict[str, Output]:
    """Returns name -> output of a probe that is run a model at a time; the folder is named after the model."""
    last = [output.directory.resolve().name for output in outputs]
    return {
        model_name(name) if last.count(name) == 1 else str(output.directory): output
        for name, output in zip(last, outputs, strict=True)
    }


def swap_part(outputs: Sequence[Output]) -> Part:
    """What the vision swap found."""
    named = model_names(outputs)
    tables = {name: read_table(output.directory / "rates.csv") for name, output in named.items()}
    findings: list[str] = []
    rows, panels = [], {}
    cases: dict[tuple[str, str], pd.DataFrame] = {}
    for set_name, task, mode in _keys(tables.values(), ["set", "task", "mode"]):
        lines = {
            name: own
            for name, table in tables.items()
            if not (own := _moved(table, set_name, task, mode)).empty and own["n"].max() > 0
        }
        rows += [_swap_row(set_name, task, mode, name, own, tables[name]) for name, own in lines.items()]
        if mode == "from":
            cases |= {(task, name): own for name, own in lines.items()}
        findings += _from_findings(task, lines) if mode == "from" else _most_findings(task, mode, lines)
        if lines:
            panels[f"{set_name}, {task}: {MODE_WORDS[mode]}"] = {
                name: own.assign(**{key: 100 * own[column] for key, column in _POINTS.items()})
                for name, own in lines.items()
            }
    failed = any(read_table(output.directory / "controls.csv")["num_differs"].sum() for output in named.values())
    figures = []
    if panels:
        caption = (
            "Share of pairs whose answer changes to the source picture’s, of those answered correctly without a swap, "
            "by the layer k where the swap begins; 95 % Wilson intervals over new pairs. The larger k is, the fewer "
            "layers see the source picture."
        )
        figures.append(
            Figure(
                source=inline_drawing(draw_depth(panels, "pairs, %", "k")),
                caption=caption,
                alt="Share of answers that follow the source picture, over the layer where the swap begins",
            )
        )
    return Part(
        title="Vision swap",
        answer=(FAILED if failed else "") + in_this_run(_swap_answer(cases)),
        what="A question about a target picture is asked, and from some layer on its vision tokens are replaced by "
        "those of a source picture, for which the answer is different. Where the answer follows the source, the layers "
        "after the swap still read the picture; where the answer stays, the picture had been read before.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Share of pairs whose answer changes to the source’s, where the swap begins at the first layer "
                "of each block (pairs answered correctly without a swap), with 95 % intervals over new pairs only; "
                "last, the paper’s own metric at k = 0 on all pairs.",
                columns=("task", "mode", "model", "n", *(f"k at {block}" for block in BLOCKS), "paper’s metric"),
                rows=rows,
                num_words=3,
            )
        ],
        failed=failed,
        controls=[_swap_controls(name, output.directory) for name, output in named.items()],
        limits=(
            "The pairs show one kind of picture; layers that read other properties may not be found.",
            "A swap shows that a layer is enough to change an answer, not that no other layer could. Models are "
            "compared by whether their intervals overlap, which is conservative: small differences may be missed.",
        ),
    )


def _swap_answer(cases: Mapping[tuple[str, str], "pd.DataFrame"]) -> str:
    """Says in a sentence which layers read the picture, for the main model, and how far the others agree."""
    ends = {case: end for case, own in cases.items() if (end := _half_gone(own)) is not None}
    if not ends:
        return _no_layers_read(cases)
    main = next((case for case in ends if case[1] == main_model([name for _, name in cases])), next(iter(ends)))
    task, name = main
    own, end = cases[main], ends[main]
    num_same = sum(other == end for other in ends.values()) - 1
    kept = _layers_before(end)
    agreeing = same_elsewhere(num_same, len(cases) - 1, "cases (models and tasks)")
    return (
        f"The picture is read mostly in {kept}: with the source picture in all layers {_share(own.iloc[0])} of answers "
        f"follow it, but {_share(own.set_index('layer').loc[end])} where {kept} {'see' if end > 1 else 'sees'} the "
        f"target ({task}, {name}, n = {int(own['n'].max())}){agreeing}."
    )


def _no_layers_read(cases: Mapping[tuple[str, str], "pd.DataFrame"]) -> str:
    if not cases:
        return "Undecided: no pair was answered correctly and swapped from some layer on."
    (task, name), own = max(cases.items(), key=lambda case: case[1].iloc[0]["rate"])
    return (
        f"Undecided: with the source picture in all layers at most {_share(own.iloc[0])} of answers follow it ({task}, "
        f"{name}, n = {int(own['n'].max())}), too few or too steady over k to say which layers read the picture."
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
    """Says up to which layer the picture is read, one sentence for all models that agree."""
    ends = {name: _half_gone(own) for name, own in lines.items()}
    for end in dict.fromkeys(ends.values()):
        rates = []
        for name in [name for name in lines if ends[name] == end]:
            first, n = lines[name].iloc[0], int(lines[name]["n"].max())
            after = "" if end is None else f", then {_share(lines[name].set_index('layer').loc[end])}"
            rates.append(f"{name} {_share(first)}{after} (n = {n})")
        if end is None:
            yield (
                f"{task}: the share of answers that follow the source does not fall to half at any k, or too few "
                f"follow it to tell; with the source picture in all layers {'; '.join(rates)}."
            )
        else:
            kept = _layers_before(end)
            yield (
                f"{task}: more than half of what changes the answer is read in {kept}. Answers that follow the source "
                f"picture in all layers, and once {kept} {'see' if end > 1 else 'sees'} the target: {'; '.join(rates)}."
            )


def _most_findings(task: str, mode: str, lines: Mapping[str, "pd.DataFrame"]) -> Iterator[str]:
    """Says in which layer a swap changes most answers, one sentence for each layer."""
    rates: dict[str, list[str]] = {}
    for name, own in lines.items():
        best = own[own["block"] != "none"].nlargest(1, "rate").iloc[0]
        place = f"k = {int(best['layer'])} ({best['block']})"
        rates.setdefault(place, []).append(f"{name} {_share(best)} (n = {int(own['n'].max())})")
    for place, said in rates.items():
        yield f"{task}, swapped {MODE_WORDS[mode]}: most answers change at {place}: {'; '.join(said)}."


def _layers_before(end: int) -> str:
    return "layer 0" if end == 1 else f"layers 0–{end - 1}"


def _half_gone(own: "pd.DataFrame") -> int | None:
    """Returns the first k at which less than half as many answers follow as at k = 0; None where at k = 0 few do."""
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
    return f"{name}: pairs that pass each control: {checks}; {skipped} pairs skipped."


def skip_part(outputs: Sequence[Output]) -> Part:
    """What leaving layers out changes."""
    named = model_names(outputs)
    tables = {name: read_table(output.directory / "rates.csv") for name, output in named.items()}
    findings, panels = [], {}
    rows: list[list[str]] = []
    block_rows: list[list[str]] = []
    cases: dict[tuple[str, str], pd.DataFrame] = {}
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
                cases[ability, name] = layers
                row = layers.nlargest(1, "drop").iloc[0]
                needed = layers[(layers["p_holm"] < LEVEL) & (layers["drop"] > 0)]
                costs.setdefault(_layer(row), []).append(
                    f"{name} {_lost(row)}, {len(needed)} of {len(layers)} layers with a significant loss"
                )
                lines[name] = layers.assign(
                    value=-100 * layers["drop"], low=-100 * layers["drop_high"], high=-100 * layers["drop_low"]
                )
        findings += [
            f"{ability}: the costliest single layer is {place}: {'; '.join(said)}." for place, said in costs.items()
        ]
        if lines:
            panels[f"{task}: {ability}"] = lines
    controls = [read_table(output.directory / "controls.csv") for output in named.values()]
    failed = not all(table["holds"].astype(bool).all() for table in controls)
    figures = []
    if panels:
        figures.append(
            Figure(
                source=inline_drawing(draw_depth(panels, "change in accuracy, points", "decoder layer left out")),
                caption="Change in accuracy when one layer’s output is replaced by its input, against the same "
                "problems with nothing left out; 95 % intervals of the paired difference over new problems.",
                alt="Change in accuracy without each decoder layer",
            )
        )
    return Part(
        title="Layer skip",
        answer=(FAILED if failed else "") + (in_this_run(_skip_answer(cases)) if cases else ""),
        what="One decoder layer, or a whole block, is left out (its residual connection stays) while the model "
        "answers. The change in accuracy shows how much the answers depend on that layer.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="Percent right with nothing left out, and the change in points without a whole block, paired "
                "on the same problems, with 95 % intervals over new problems only; *: significant, without *: not "
                f"significant after correction for {counted_tests(len(BLOCKS))} (McNemar, Holm).",
                columns=("ability", "model", "n", "accuracy", *BLOCKS),
                rows=block_rows,
                num_words=2,
            ),
            Table(
                caption="Change in accuracy without a layer or block, paired on the same problems, with 95 % intervals "
                "over new problems only; p-values exact (McNemar), corrected over the rows of a kind (Holm).",
                columns=(
                    "ability",
                    "model",
                    "left out",
                    "n",
                    "accuracy",
                    "change",
                    "95 % interval",
                    "p, corrected",
                    "verdict",
                ),
                rows=rows,
                num_words=3,
            ),
        ],
        failed=failed,
        controls=[_skip_controls(name, output.directory) for name, output in named.items()],
        limits=(
            "Without a layer, later layers get input that they were not trained on. A loss shows that the model as it "
            "is needs the layer, not that the layer holds the ability. The first layers always cost much.",
        ),
    )


def _layer(row: Any) -> str:
    return f"{int(row['layer'])} ({row['block']})"


def _skip_answer(cases: Mapping[tuple[str, str], "pd.DataFrame"]) -> str:
    """Says in a sentence which single layer costs most, for the main model, and how far the others agree."""
    if not cases:
        return ""
    worst = {case: layers.nlargest(1, "drop").iloc[0] for case, layers in cases.items()}
    beyond = {case: row for case, row in worst.items() if row["p_holm"] < LEVEL and row["drop"] > 0}
    chosen = beyond or worst
    name = main_model([name for _, name in cases])
    main = max(chosen, key=lambda case: (case[1] == name, chosen[case]["drop"]))
    row = chosen[main]
    place = f"{_lost(row)} on {main[0]} ({main[1]}, n = {int(row['num_compared'])})"
    if not beyond:
        return f"Undecided: no single layer costs accuracy significantly; the largest change is {place}."
    num_same = sum(_layer(other) == _layer(row) for other in beyond.values()) - 1
    agreeing = same_elsewhere(num_same, len(cases) - 1, "cases (models and abilities)")
    return f"Leaving out layer {_layer(row)} costs most: {place}{agreeing}."


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
    return change(-row["drop"], -row["drop_high"], -row["drop_low"])


def _drop(row: Any) -> str:
    return f"{points(-row['drop'])} {interval(-row['drop_high'], -row['drop_low'])}"


def _skip_rows(ability: str, name: str, own: "pd.DataFrame") -> Iterator[list[str]]:
    num_tests = own[own["p_holm"].notna()]["kind"].value_counts()
    for _, row in own[own["kind"] != "none"].iterrows():
        low, high = -row["drop_high"], -row["drop_low"]
        yield [
            ability, name, str(row["configuration"]), str(int(row["num_compared"])), percent(row["accuracy"]),
            points(-row["drop"]), interval(low, high), probability(row["p_holm"]),
            verdict_of(row["p_holm"], low, high, num_tests.get(row["kind"], 0)),
        ]  # fmt: skip


def _skip_controls(name: str, directory: Path) -> str:
    parts = []
    for _, row in read_table(directory / "controls.csv").iterrows():
        verdict = "passed" if row["holds"] else "FAILED"
        parts.append(f"{int(row['num_equal_replies'])} of {int(row['n'])} replies to {row['task']}, {verdict}")
    return f"{name}: with nothing left out the reply equals the plain model’s: {'; '.join(parts)}."


def _keys(tables: Any, columns: list[str]) -> list[tuple[Any, ...]]:
    """Returns the groups that any of the tables has, in their order."""
    return list(
        dict.fromkeys(
            key for table in tables for key in table[columns].drop_duplicates().itertuples(index=False, name=None)
        )
    )


def _share(row: Any, column: str = "rate") -> str:
    return NOTHING if row[column] != row[column] else share(row[column], row["low"], row["high"])
