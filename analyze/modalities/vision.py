"""Does the vision tower see enough? Its probes compared with those of vision-only encoders on the same pictures.

Each model is read at its layer of the best cross-validated accuracy on the training pictures, as `eval.tower` chooses
the encoders' layers, so the test pictures choose nothing.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from analyze.modalities.inputs import START, Evidence
from analyze.report.parts import Figure, Part, Section, Table
from data_builders.prompt_sets.fields import plain_name
from eval.compare.scope import LEVEL
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import change, format_share, listed, probability
from eval.tower.features import PIXELS
from eval.tower.tables import RANDOM

if TYPE_CHECKING:
    import pandas as pd

PROBE = "linear"
EVERYTHING = "all pictures"
MODALITY = "modality"
BASELINES = (RANDOM, PIXELS)


def vision_section(evidence: Evidence) -> Section:
    """Returns the first axis: what the towers know, and how they compare with encoders."""
    section = Section(
        anchor="vision",
        question="Vision: does the tower see enough?",
        lead="Linear probes on frozen features, on the same pictures and splits. What a probe cannot read from the "
        "tower, no training of the decoder can recover.",
    )
    if "tower" not in evidence.tables or "differences" not in evidence.tables:
        section.gaps.append("the towers were not probed; add `tower`, the YAML of eval.tower, to the study")
        return section
    scores, differences = evidence.tables["tower"], evidence.tables["differences"]
    groups = [
        (name, own[own["probe"] == PROBE], other[other["probe"] == PROBE])
        for name, own, other in _groups(scores, differences)
    ]
    best = {name: _best_rows(own) for name, own, _ in groups}
    rows = [row for name, _, other in groups for row in _compared(name, other, best[name], evidence.encoders)]
    section.parts.append(
        Part(
            title="Towers and vision-only encoders",
            answer=_answer(rows, evidence.encoders),
            what="Accuracy of a linear probe at each model's best layer, chosen by cross-validation on the training "
            "pictures.",
            figures=[_figure(best)],
            tables=[_table("Tower less encoder or baseline in points, paired by test picture", rows)],
            controls=[
                "Towers of the same shape with random weights, from several seeds, and raw pixels go through the same "
                "probes. Where they are nearly always right, these pictures cannot tell towers apart; elsewhere, a "
                "tower that is not better than both has learned nothing that helps here."
            ],
            limits=[
                "A probe reads an average over patches. It can miss what a decoder reads from single patches, and it "
                "can read what the decoder never uses. Intervals cover new test pictures, not new training parts."
            ],
        )
    )
    if "areas" in evidence.tables:
        section.parts.append(_findings_part(scores, evidence.tables["areas"], evidence.encoders))
    return section


def _findings_part(scores: "pd.DataFrame", areas: "pd.DataFrame", encoders: tuple[str, ...]) -> Part:
    """Returns the comparisons in macro AUC, of pictures with several findings."""
    scores, areas = scores[scores["probe"] == PROBE], areas[areas["probe"] == PROBE]
    rows = [
        row
        for name, own, other in _groups(scores, areas)
        if not other.empty
        for row in _compared(name, other, _best_rows(own), encoders)
    ]
    return Part(
        title="Pictures with several findings",
        answer=_answer(rows, encoders),
        what="Macro AUC of one linear probe per finding. Most pictures lack most findings, so an accuracy near 100 % "
        "can mean that no finding is recognised. AUC does not depend on how frequent a finding is.",
        tables=[_table("Tower less encoder or baseline in macro AUC, times 100, paired by test picture", rows)],
        controls=["Random towers and raw pixels, as above. An AUC of 50 is chance."],
        limits=["Every finding counts equally, also those that few test pictures have."],
    )


def _groups(
    scores: "pd.DataFrame", differences: "pd.DataFrame"
) -> Iterator[tuple[str, "pd.DataFrame", "pd.DataFrame"]]:
    """Yields the rows of each modality; of all pictures together if the tables are not divided."""
    if MODALITY not in scores or MODALITY not in differences:
        yield EVERYTHING, scores, differences
        return
    for name in dict.fromkeys(scores[MODALITY].dropna()):
        yield str(name), scores[scores[MODALITY] == name], differences[differences[MODALITY] == name]


def _best_rows(scores: "pd.DataFrame") -> dict[str, Any]:
    """Returns each model's row at its best layer; random towers at the best layer of their mean.

    The best layer has the highest cross-validated accuracy, or AUC of pictures with findings, as `eval.tower` chooses.
    """
    chosen = _chosen_by(scores)
    found: dict[str, Any] = {}
    for name, own in scores.groupby("model", sort=False):
        if name == RANDOM:
            means = own.groupby("layer", sort=False)[chosen].mean()
            layer = str(means.idxmax())
            accuracy = float(own.loc[own["layer"] == layer, "accuracy"].mean())
            unknown = float("nan")
            found[str(name)] = {"layer": layer, "accuracy": accuracy, "low": unknown, "high": unknown}
        else:
            found[str(name)] = own.sort_values(chosen, ascending=False, kind="stable").iloc[0]
    return found


def _subject(models: Sequence[str], encoders: tuple[str, ...]) -> str:
    """Returns the start, else the first model that is neither an encoder nor a baseline."""
    return START if START in models else next(name for name in models if name not in (*BASELINES, *encoders))


def _chosen_by(scores: "pd.DataFrame") -> str:
    return "cv_auc" if "cv_auc" in scores and scores["cv_auc"].notna().all() else "cv_accuracy"


def _compared(
    name: str, differences: "pd.DataFrame", best: dict[str, Any], encoders: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """Yields each model's comparisons at its best layer."""
    for model, row in best.items():
        if model in (*BASELINES, *encoders):
            continue
        own = differences[(differences["model"] == model) & (differences["layer"] == row["layer"])]
        for against in (*encoders, *BASELINES):
            for _, each in own[own["against"] == against].iterrows():
                yield name, each


def _answer(rows: list[tuple[str, Any]], encoders: tuple[str, ...]) -> str:
    if not rows:
        return "Undecided: no tower was compared."
    model = _subject([str(row["model"]) for _, row in rows], encoders)
    own = [(name, row) for name, row in rows if row["model"] == model]
    first = "" if encoders else "No encoder was named. Against random towers and pixels: "
    compared = [(name, row) for name, row in own if row["against"] in (encoders or BASELINES)]
    worse = [pair for pair in compared if pair[1]["p_holm"] < LEVEL and pair[1]["difference"] < 0]
    better = [pair for pair in compared if pair[1]["p_holm"] < LEVEL and pair[1]["difference"] > 0]
    lowest = min(compared, key=lambda pair: pair[1]["difference"])
    return (
        f"{first}{model}’s tower is significantly better in {len(better)} of {len(compared)} comparisons and "
        f"significantly worse in {len(worse)}{_named(worse)}. Its lowest difference is to {lowest[1]['against']} on "
        f"{lowest[0]}: {change(lowest[1]['difference'], lowest[1]['low'], lowest[1]['high'])}, corrected p = "
        f"{probability(lowest[1]['p_holm'])}, n = {int(lowest[1]['n'])}."
    )


def _named(pairs: list[tuple[str, Any]]) -> str:
    named = [f"{row['against']} on {name}" for name, row in pairs]
    return f" ({listed(named)})" if named else ""


def _table(what: str, rows: list[tuple[str, Any]]) -> Table:
    return Table(
        caption=f"{what}, with 95 % intervals.",
        columns=["pictures", "model", "layer", "against", "its layer", "n", "difference", "p, corrected"],
        rows=[_cells(name, row) for name, row in rows],
        num_words=5,
    )


def _cells(name: str, row: Any) -> list[str]:
    return [
        name, str(row["model"]), str(row["layer"]), str(row["against"]), str(row["against_layer"]), f"{int(row['n'])}",
        change(row["difference"], row["low"], row["high"]), probability(row["p_holm"]),
    ]  # fmt: skip


def _figure(best: dict[str, dict[str, Any]]) -> Figure:
    panels = [
        Panel(
            title=name,
            rows={
                model: [Mark(value=row["accuracy"], low=row["low"], high=row["high"], filled=model not in BASELINES)]
                for model, row in rows.items()
            },
        )
        for name, rows in best.items()
    ]
    said = [
        f"{model} on {name} {format_share(row['accuracy'])}"
        for name, rows in best.items()
        for model, row in rows.items()
    ]
    alt = f"Accuracy of a linear probe per model and modality: {listed(said)}"
    return Figure(
        drawing=draw_forest(panels, label="accuracy of the linear probe, %", alt=alt, signed=False),
        caption="Accuracy of the linear probe on test pictures, with Wilson’s 95 % intervals. Hollow: baselines "
        "without training.",
    )


def saw_enough(evidence: Evidence, modality: str) -> str:
    """Returns the accuracy of the start's tower on a modality, for the first screen; empty without it."""
    if "tower" not in evidence.tables:
        return ""
    scores = evidence.tables["tower"]
    if MODALITY not in scores:
        return ""
    own = scores[(scores["probe"] == PROBE) & (scores[MODALITY].astype(str).map(plain_name) == plain_name(modality))]
    if own.empty:
        return ""
    best = own[own["model"] == _subject(list(map(str, own["model"])), evidence.encoders)]
    return format_share(best.sort_values(_chosen_by(best), ascending=False, kind="stable")["accuracy"].iloc[0])
