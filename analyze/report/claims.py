"""Was the support widened, and which claims hold? Parts drawn from the tables of `eval.support` and `eval.claims`."""

from collections.abc import Sequence
from typing import Any

from analyze.report.inputs import Output
from analyze.report.parts import Figure, Part, Table, change, corrected, inline_file, listed
from eval.claims.command import display_model
from eval.claims.tables import CONTRADICTED, SUPPORTED, UNMEASURED
from eval.display.formatting import NOTHING, interval, points, probability
from eval.support.command import MAJORITY, PASS
from tracking.tables import read_table

REWARDED = ("full", "rl")
"""Models that stand for RL in the summary."""
SUPPORT_WORDS = {
    "sharpened": "sharpened: better at one try, worse at all of them",
    "widened": "widened: it reaches prompts that were out of reach",
    "narrowed": "narrowed: it reaches fewer prompts",
    "not decidable": "whether more or less is in reach is not decidable at this n",
}


def support_part(outputs: Sequence[Output]) -> Part:
    """What many samples say."""
    findings: list[str] = []
    answers, rows, figures, baselines = [], [], [], []
    for output in outputs:
        changes = read_table(output.directory / "changes.csv")
        baselines += [name for name in dict.fromkeys(map(str, changes["against"])) if name not in baselines]
        for ability, per_ability in changes.groupby("ability", sort=False):
            others: dict[str, list[str]] = {}
            for model in dict.fromkeys(map(str, per_ability["model"])):
                own = per_ability[per_ability["model"] == model]
                curve = own[own["metric"] == PASS].sort_values("k")
                one, last = curve.iloc[0], curve.iloc[-1]
                verdict, against = str(one["verdict"]), one["against"]
                words = SUPPORT_WORDS.get(verdict, verdict)
                if model in REWARDED or per_ability["model"].nunique() == 1:
                    findings.append(
                        f"{ability} (n = {int(one['n'])}): {model} − {against} is "
                        f"{change(one['value'], one['low'], one['high'])} at k = {int(one['k'])}, "
                        f"{change(last['value'], last['low'], last['high'])} at k = {int(last['k'])}; {words}."
                    )
                else:
                    others.setdefault(words, []).append(model)
                if model in REWARDED:
                    answers.append(f"{model} − {against}, {ability}: {words}.")
                votes = own[own["metric"] == MAJORITY]
                rows.append([
                    str(ability), model, verdict, f"{int(one['n'])} × {int(one['num_seeds'])}", _cell(one),
                    _cell(last), NOTHING if votes.empty else _cell(votes.iloc[0]),
                ])  # fmt: skip
            if others:
                said = [f"{listed(models)}: {words}" for words, models in others.items()]
                findings.append(f"{ability}, the other models: {'; '.join(said)}.")
        figures += [
            Figure(source=inline_file(path), caption="pass@k over k, and its difference to the start; 95 % intervals.")
            for path in sorted((output.directory / "figures").glob("support*.png"))
        ]
    return Part(
        title="pass@k",
        answers=answers,
        what="Each prompt is answered many times by sampling. pass@k: the chance that one of k samples is right. "
        "Better at k = 1 alone means that what was already in reach is found more surely; better at the largest k, "
        "that more is in reach (the support is widened).",
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption=f"Differences from {listed(baselines)} in points with 95 % intervals over prompts and seeds: "
                "at one try, at all, and of the majority’s answer. The verdicts follow from the intervals, uncorrected "
                "for their number.",
                columns=("ability", "model", "verdict", "n × seeds", "k = 1", "k at most", "majority"),
                rows=rows,
                num_words=3,
            )
        ],
        limits=(
            "“Out of reach” is within as many samples as were drawn; more of them, or another temperature, may do so.",
            "With answers from a small set, many samples come upon the right one by guessing.",
        ),
    )


def _cell(row: Any) -> str:
    return f"{points(row['value'])} {interval(row['low'], row['high'])}"


def claims_part(outputs: Sequence[Output]) -> Part:
    """What can be said of the paper's claims."""
    findings, rows, counts = [], [], []
    for output in outputs:
        statements = read_table(output.directory / "statements.csv")
        claims = read_table(output.directory / "claims.csv")
        for _, row in statements.iterrows():
            rows.append([
                row["statement"], f"{display_model(row['model'])} − {display_model(row['against'])}", row["verdict"],
                _difference(row, ""), _difference(row, "measured_"), probability(row["measured_p_holm"]),
            ])  # fmt: skip
            if row["verdict"] in (SUPPORTED, CONTRADICTED):
                measured = change(row["measured_difference"], row["measured_low"], row["measured_high"])
                findings.append(
                    f"“{row['statement']}”: {row['verdict']}; measured here {measured}, "
                    f"{corrected(row['measured_p_holm'])}."
                )
        unmeasured = statements[statements["verdict"] == UNMEASURED]
        if len(unmeasured):
            findings.append(f"{len(unmeasured)} of {len(statements)} statements were not measured here.")
        for number, own in claims.groupby("table", sort=False):
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in own["verdict"].value_counts().items())
            counts.append(
                f"Table {number}: {len(own)} comparisons, {verdicts}. Of the paper’s own differences those that exceed "
                f"the noise of their sample sizes: {int(own['exceeds_noise'].sum())}."
            )
    return Part(
        title="Statements",
        answers=[_verdict_counts(rows)],
        what="Each statement of the paper is laid beside what was measured. Supported: beyond chance in the claimed "
        "direction, or, where no difference is claimed, within 5 points of none. Contradicted: beyond chance the other "
        "way. Else it is not decidable at this n, which is not the same as wrong.",
        findings=[*findings, *counts],
        tables=[
            Table(
                caption="Differences in points with 95 % intervals: the paper’s own, from its percentages, and ours.",
                columns=("statement", "models", "verdict", "paper", "measured here", "p, corrected"),
                rows=rows,
                num_words=3,
            )
        ],
        limits=(
            "A statement about other models is not refuted by these: what is judged is whether it holds here.",
            "The paper does not state its sample sizes; they are taken to be 100, which its integer percentages fit.",
        ),
    )


def _verdict_counts(rows: Sequence[Sequence[str]]) -> str:
    verdicts = [row[2] for row in rows]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    return f"of {len(rows)} statements {', '.join(counts)}."


def _difference(row: Any, prefix: str) -> str:
    if row[f"{prefix}difference"] != row[f"{prefix}difference"]:
        return NOTHING
    return f"{points(row[f'{prefix}difference'])} {interval(row[f'{prefix}low'], row[f'{prefix}high'])}"
