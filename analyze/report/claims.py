"""Does RL reach more answers, and which claims hold? Parts from the tables of `eval.support` and `eval.claims`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyze.report.inputs import Output
from analyze.report.parts import REWARDED, Figure, Part, Table, corrected, inline_file
from eval.claims.command import display_model
from eval.claims.page import answer, draw_statements, measured_runs, measured_verdict
from eval.claims.tables import CONTRADICTED, SUPPORTED, UNMEASURED
from eval.compare.scope import IN_THIS_RUN, about, covers, read_current
from eval.display.formatting import MINUS, NOTHING, change, interval, listed, points, probability
from eval.statistics.pooled import TRAINING
from eval.support.samples import MAJORITY, PASS
from eval.support.tables import NARROWED, NO_CHANGE, SHARPENED, WIDENED
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

SUPPORT_WORDS = {
    SHARPENED: "sharpened (better with one sample, worse with all)",
    WIDENED: "widened (better with all samples: it solves prompts that were out of reach)",
    NARROWED: "narrowed (worse with all samples: it solves fewer prompts)",
    NO_CHANGE: "undecided (the interval with all samples includes zero)",
}


def support_part(outputs: Sequence[Output]) -> Part:
    """What many samples show."""
    findings: list[str] = []
    answers, rows, figures, baselines, scopes = [], [], [], [], []
    for output in outputs:
        changes = read_current(output.directory / "changes.csv", "eval.support", ("scope",))
        if "modality" in changes:
            named = changes["ability"] + ", " + changes["modality"]
            changes["ability"] = named.where(changes["ability"] != changes["modality"], changes["ability"])
        baselines += [name for name in dict.fromkeys(map(str, changes["against"])) if name not in baselines]
        answers += _support_answers(changes)
        for ability, per_ability in changes.groupby("ability", sort=False):
            others: dict[str, list[str]] = {}
            for model in dict.fromkeys(map(str, per_ability["model"])):
                own = per_ability[per_ability["model"] == model]
                curve = own[own["metric"] == PASS].sort_values("k")
                one, last = curve.iloc[0], curve.iloc[-1]
                verdict, against = str(one["verdict"]), one["against"]
                scopes.append(str(one["scope"]))
                words = SUPPORT_WORDS.get(verdict, verdict)
                if model in REWARDED or per_ability["model"].nunique() == 1:
                    findings.append(
                        f"{ability} (n = {int(one['n'])}): {model} {MINUS} {against} {_runs(one)} is "
                        f"{change(one['value'], one['low'], one['high'])} at k = {int(one['k'])}, "
                        f"{change(last['value'], last['low'], last['high'])} at k = {int(last['k'])}; {words}."
                    )
                else:
                    others.setdefault(words, []).append(model)
                votes = own[own["metric"] == MAJORITY]
                rows.append([
                    str(ability), model, verdict, _about(one), str(int(one["n"])), _cell(one), _cell(last),
                    NOTHING if votes.empty else _cell(votes.iloc[0]),
                ])  # fmt: skip
            if others:
                said = [f"{listed(models)}: {words}" for words, models in others.items()]
                findings.append(f"{ability}, the other models: {'; '.join(said)}.")
        figures += [
            Figure(
                source=inline_file(path),
                caption=f"pass@k over k, and the difference from the start; 95 % intervals over {covers(scopes)}.",
                alt="pass@k over the number of samples k, per model and ability",
            )
            for path in sorted((output.directory / "figures").glob("support*.png"))
        ]
    return Part(
        title="pass@k",
        answer=" ".join(answers),
        about=about(scopes),
        what="Each prompt is answered many times by sampling. pass@k is the chance that at least one of k samples is "
        "right. Better only at k = 1: the model finds more surely what was already in reach. Better at the largest k: "
        "more is in reach, the support is widened.",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption=f"Differences from {listed(baselines)} in points with 95 % intervals over {covers(scopes)}: "
                "with one sample, with all samples, and of the majority vote. The verdicts follow from the intervals "
                "and are not corrected for their number. Sampled replies are other replies than the greedy ones of "
                "the sections above, so the differences at k = 1 are other differences than there.",
                columns=("ability", "model", "verdict", "about", "n", "k = 1", "largest k", "majority"),
                rows=rows,
                num_words=4,
            )
        ],
        limits=(
            "“Out of reach” refers to the number of samples drawn; more samples, or another temperature, may reach it.",
            "Where there are few possible answers, many samples hit the right one by guessing.",
        ),
    )


def _support_answers(changes: "pd.DataFrame") -> list[str]:
    """Says in a sentence per model after RL whether it reaches more; without one, of the last model."""
    models = list(dict.fromkeys(map(str, changes["model"])))
    return [
        _support_answer(changes[(changes["model"] == model) & (changes["metric"] == PASS)])
        for model in [model for model in models if model in REWARDED] or models[-1:]
    ]


def _support_answer(own: "pd.DataFrame") -> str:
    ends = [group.sort_values("k") for _, group in own.groupby("ability", sort=False)]
    last: list[Any] = [group.iloc[-1] for group in ends]
    models = f"{last[0]['model']} {MINUS} {last[0]['against']}"
    kinds = {kind: [row["ability"] for row in last if row["verdict"] == kind] for kind in SUPPORT_WORDS}
    lost = [row["ability"] for row in last if row["verdict"] in (NARROWED, SHARPENED)]
    if kinds[WIDENED]:
        head = f"Yes, on {listed(kinds[WIDENED])}"
    elif lost:
        head = f"No, on {listed(lost)} it reaches less"
    else:
        head = "Undecided"
    said = [f"{change(row['value'], row['low'], row['high'])} on {row['ability']}" for row in last]
    better = [
        f"{change(row['value'], row['low'], row['high'])} on {row['ability']}"
        for row in (group.iloc[0] for group in ends)
        if row["low"] > 0
    ]
    numbers = sorted({int(row["n"]) for row in last})
    n = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    one = f"; with one sample it is {listed(better)}" if better else ""
    head += f", {IN_THIS_RUN}" if last[0]["scope"] != TRAINING else ""
    seeds = f" {_runs(last[0])}" if last[0]["scope"] == TRAINING else ""
    return f"{head}: with {int(last[0]['k'])} samples a prompt, {models}{seeds} is {listed(said)} (n = {n}){one}."


def _runs(row: Any) -> str:
    return f"over {int(row['num_seeds'])} training seeds" if row["scope"] == TRAINING else IN_THIS_RUN


def _about(row: Any) -> str:
    return f"training, {int(row['num_seeds'])} seeds" if row["scope"] == TRAINING else "checkpoints"


def _cell(row: Any) -> str:
    return f"{points(row['value'])} {interval(row['low'], row['high'])}"


def claims_part(outputs: Sequence[Output]) -> Part:
    """Which of the paper's claims hold here."""
    findings, rows, counts, figures, answers, scopes = [], [], [], [], [], []
    for output in outputs:
        statements = read_current(output.directory / "statements.csv", "eval.claims", ("measured_scope",))
        claims = read_table(output.directory / "claims.csv")
        measured = bool(statements["measured_difference"].notna().any())
        answers.append(answer(statements, claims, measured=measured))
        figures.append(
            Figure(
                drawing=draw_statements(statements, measured=measured),
                caption="The difference that each statement is about, in points with 95 % intervals: as published "
                "and as measured here. Filled marks are significant after correction, hollow ones are not.",
            )
        )
        for _, row in statements.iterrows():
            known = row["measured_p"] == row["measured_p"]
            scopes += [row["measured_scope"]] if known else []
            rows.append([
                row["statement"], f"{display_model(row['model'])} {MINUS} {display_model(row['against'])}",
                row["verdict"], _difference(row, ""), _difference(row, "measured_"),
                measured_runs(row) if known else NOTHING, probability(row["measured_p_holm"]),
                measured_verdict(row) or NOTHING,
            ])  # fmt: skip
            if row["verdict"] in (SUPPORTED, CONTRADICTED) and measured:
                found = change(row["measured_difference"], row["measured_low"], row["measured_high"])
                findings.append(
                    f"“{row['statement']}”: {row['verdict']}; measured here {measured_runs(row)}: {found}, "
                    f"{corrected(row['measured_p_holm'])}."
                )
        unmeasured = statements[statements["verdict"] == UNMEASURED]
        if len(unmeasured):
            findings.append(f"{len(unmeasured)} of {len(statements)} statements were not measured here.")
        for number, own in claims.groupby("table", sort=False):
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in own["verdict"].value_counts().items())
            counts.append(
                f"Table {number}: {len(own)} comparisons, {verdicts}. Of the paper’s own differences, "
                f"{int(own['exceeds_noise'].sum())} are significant at their sample sizes."
            )
    return Part(
        title="Statements",
        answer=" ".join(answers),
        about=about(scopes),
        what="Each statement of the paper is compared with what was measured. Supported: the difference is significant "
        "in the claimed direction, or, where no difference is claimed, the two models are shown to be equal within 5 "
        "points (two one-sided tests at 5 %). Contradicted: it is significant in another direction. Otherwise it is "
        "not decidable at this n, which does not mean wrong. A statement about one difference has the numbers and the "
        "corrected p-value of that difference in the sections above; a mean of several is corrected for all such "
        "means.",
        findings=[*findings, *counts],
        figures=figures,
        tables=[
            Table(
                caption="Differences in points with 95 % intervals: the paper’s own, from its percentages (over new "
                f"prompts only), and ours (over {covers(scopes)}).",
                columns=("statement", "models", "verdict", "paper", "measured here", "about", "p, corrected", "test"),
                rows=rows,
                num_words=3,
            )
        ],
        limits=(
            "The verdicts say whether a statement holds for these models; they do not refute it for others.",
            "The paper does not state its sample sizes. Here they are assumed to be 100, which fits its percentages.",
        ),
    )


def _difference(row: Any, prefix: str) -> str:
    if row[f"{prefix}difference"] != row[f"{prefix}difference"]:
        return NOTHING
    return f"{points(row[f'{prefix}difference'])} {interval(row[f'{prefix}low'], row[f'{prefix}high'])}"
