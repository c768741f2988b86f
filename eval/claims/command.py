"""Do the measurements support the paper's claims? Every comparison of its Tables 2 and 3, with a verdict.

    python -m eval.claims --output-dir outputs/claims
    python -m eval.claims --scores outputs/comparison/scores.csv --output-dir outputs/claims
    python -m eval.claims --layers outputs/layers/middle.csv --output-dir outputs/claims
    python -m eval.claims --support D --transfer D --tower D --output-dir outputs/claims

Without scores the paper's own percentages are judged: which of its differences are significant at n = 100? With the
scores of `eval.compare` (`RECIPE=FILE` if they repeat one of the paper's recipes) each claim is judged by these
measurements:

    supported                  the difference is significant (p below 5 %, as `eval.compare` corrected it) and has the
                               sign of the paper's; for a claim that two models do not differ: the 90 % interval
                               lies within 5 points of zero (two one-sided tests: D. Schuirmann, Journal of
                               Pharmacokinetics and Biopharmaceutics 15, 1987)
    contradicted               it is significant and has the other sign
    not decidable at this n    neither

A verdict is about training if the comparison has several seeds, otherwise about the evaluated checkpoints
(`measured_scope`). What has no corrected p-value in a `comparison.csv` is Holm-corrected within its table.

With the `middle.csv` of a layer sweep (`analyze.layers`), a claim of another paper is judged too, arXiv 2607.01232: a
middle layer that trains alone gains more than another layer (`middle_layers.csv`).

With results of `eval.support --by modality`, `eval.transfer` or `eval.tower`, the statements of a third paper are
judged, arXiv 2603.01301: when does RL help? (`when_rl_helps.csv`; the rules are in `when.py`).

`claims.csv` has one row per comparison, `statements.csv` one row per sentence of the paper, `claims.html` shows both.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.claims.measured import read_measured, split_recipe
from eval.claims.middle import judge_middle, middle_lines, middle_row
from eval.claims.page import answer, draw_statements, measured_runs, measured_verdict
from eval.claims.published import ABILITY_SIZE, BENCHMARK_SIZES, read_published
from eval.claims.tables import CONTRADICTED, SUPPORTED, UNMEASURED, claim_table, statement_table
from eval.claims.when import FILES, read_folders, when_lines, when_row, when_table
from eval.compare.scope import MARGIN
from eval.display.formatting import interval, percent, points, probability
from eval.display.page import page_environment
from tracking.command import parse_arguments
from tracking.product import write_text
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "claims.html.j2"
MIDDLE = "middle_layers.csv"
WHEN = "when_rl_helps.csv"


@dataclass(frozen=True, kw_only=True)
class ClaimsArguments:
    """The scores that the paper's claims are judged by."""

    output_dir: str = field(metadata={"help": "where claims.csv, statements.csv and claims.html are written"})
    scores: list[str] = field(
        default_factory=list,
        metadata={
            "help": "one or more DIR/scores.csv of eval.compare, or RECIPE=DIR/scores.csv; if several contain the same "
            "comparison, the first counts; without it the paper's own numbers are judged"
        },
    )
    layers: str | None = field(
        default=None,
        metadata={"help": "middle.csv of analyze.layers, which judges that middle layers suffice (arXiv 2607.01232)"},
    )
    support: str | None = field(
        default=None, metadata={"help": "folder of eval.support --by modality, for when RL helps (arXiv 2603.01301)"}
    )
    transfer: str | None = field(default=None, metadata={"help": "folder of eval.transfer, for when RL helps"})
    tower: str | None = field(default=None, metadata={"help": "folder of eval.tower, for when RL helps"})
    num_samples: int = field(
        default=ABILITY_SIZE,
        metadata={"help": "number of prompts behind each ability score of the paper, which the paper does not state"},
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1")

    @property
    def folders(self) -> dict[str, str]:
        """Argument -> folder, of those that are given for when RL helps."""
        found = {"tower": self.tower, "support": self.support, "transfer": self.transfer}
        return {name: folder for name, folder in found.items() if folder is not None}


def judge_claims(arguments: ClaimsArguments) -> Path:
    """Writes the tables and the page, and returns their directory."""
    recipes = list(dict.fromkeys(recipe for _, recipe, _, _ in read_published()))
    measured = [read_measured(text, recipes) for text in arguments.scores]
    middle = judge_middle(Path(arguments.layers)) if arguments.layers else None
    when = when_table(read_folders(arguments.folders)) if arguments.folders else None
    settings: dict[str, Any] = {
        "num_samples": arguments.num_samples,
        "scores": [[split_recipe(text)[0], _fingerprint(split_recipe(text)[1])] for text in arguments.scores],
    }
    if arguments.layers:
        settings["layers"] = hashlib.sha256(Path(arguments.layers).read_bytes()).hexdigest()
    for name, folder in arguments.folders.items():
        files = [Path(folder) / f"{file}.csv" for file in FILES[name].tables]
        settings[name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    output_dir = Path(arguments.output_dir)
    with open_run(output_dir, command="eval.claims", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        claims = claim_table(arguments.num_samples, measured)
        statements = statement_table(claims, measured=measured)
        write_table(output_dir / "claims.csv", claims)
        write_table(output_dir / "statements.csv", statements)
        if middle is not None:
            write_table(output_dir / MIDDLE, middle)
        if when is not None:
            write_table(output_dir / WHEN, when)
        page = render(claims, statements, arguments.num_samples, bool(measured), middle, when)
        write_text(output_dir / "claims.html", page)
    return output_dir


def _fingerprint(scores: Path) -> str:
    digest = hashlib.sha256()
    for path in (scores, scores.with_name("comparison.csv")):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def render(
    claims: "pd.DataFrame",
    statements: "pd.DataFrame",
    num_samples: int,
    measured: bool,
    middle: "pd.DataFrame | None" = None,
    when: "pd.DataFrame | None" = None,
) -> str:
    """Returns the page as HTML."""
    template = page_environment(TEMPLATES).get_template(PAGE)
    tables = [
        {
            "number": number,
            "rows": [_claim_row(row) for row in _rows(own[own["verdict"] != UNMEASURED])],
            "num_claims": len(own),
            "beyond": [_claim_row(row) for row in _rows(own[own["exceeds_noise"]])],
            "num_abilities": int((~own["ability"].isin(BENCHMARK_SIZES)).sum()),
            "num_abilities_beyond": int((own["exceeds_noise"] & ~own["ability"].isin(BENCHMARK_SIZES)).sum()),
            "verdicts": dict(own["verdict"].value_counts()),
        }
        for number, own in claims.groupby("table", sort=False)
    ]
    return template.render(
        answer=answer(statements, claims, measured=measured),
        drawing=draw_statements(statements, measured=measured),
        tables=tables,
        statements=[_statement_row(row) for row in _rows(statements)],
        middle=[middle_row(row) | {"css": css_class(row["verdict"])} for row in _rows(middle)]
        if middle is not None
        else [],
        when=[when_row(row) | {"css": css_class(row["verdict"])} for row in _rows(when)] if when is not None else [],
        num_samples=num_samples,
        sizes=BENCHMARK_SIZES,
        margin=f"{100 * MARGIN:.0f}",
        measured=measured,
    )


def _rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _claim_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("recipe", "ability", "exceeds_noise", "verdict")} | {
        "model": display_model(row["model"]),
        "against": display_model(row["against"]),
        "css": css_class(row["verdict"]),
        "own": _numbers(row, ""),
        "num_needed": f"{row['num_needed']:,.0f}" if row["num_needed"] == row["num_needed"] else "–",
        "measured": _numbers(row, "measured_"),
    }


def _numbers(row: dict[str, Any], prefix: str) -> dict[str, str]:
    """Returns one side's numbers as text; empty where it was not measured."""
    if row[f"{prefix}n"] != row[f"{prefix}n"]:
        return dict.fromkeys(("shares", "n", "difference", "interval", "p_holm"), "")
    return {
        "shares": f"{percent(row[f'{prefix}share'])} / {percent(row[f'{prefix}share_against'])}",
        "n": f"{row[f'{prefix}n']:.0f}",
        "difference": points(row[f"{prefix}difference"]),
        "interval": interval(row[f"{prefix}low"], row[f"{prefix}high"]),
        "p_holm": probability(row[f"{prefix}p_holm"]),
    }


def _statement_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("statement", "abilities", "expected", "verdict", "num_comparisons")} | {
        "model": display_model(row["model"]),
        "against": display_model(row["against"]),
        "css": css_class(row["verdict"]),
        "about": measured_runs(row) if row["measured_p"] == row["measured_p"] else "",
        "test": measured_verdict(row),
        **{
            f"{prefix}{name}": text
            for prefix in ("", "measured_")
            for name, text in (
                ("difference", points(row[f"{prefix}difference"])),
                ("interval", interval(row[f"{prefix}low"], row[f"{prefix}high"])),
                ("p_holm", probability(row[f"{prefix}p_holm"])),
            )
        },
    }


def display_model(name: str) -> str:
    """Returns a model's name as the paper prints it: `IN:RL:RL`, `frozen mid`."""
    if name.startswith("freeze-"):
        return name.replace("freeze-", "frozen ")
    return name if name == "base" else name.upper().replace("-", ":")


def css_class(verdict: str) -> str:
    return {SUPPORTED: "supported", CONTRADICTED: "contradicted", UNMEASURED: "soft"}.get(verdict, "")


def summary(claims: "pd.DataFrame") -> list[str]:
    """Returns what is said on the terminal: per table how many claims came out how."""
    lines = []
    for number, own in claims.groupby("table", sort=False):
        counts = [f"{count} {verdict}" for verdict, count in own["verdict"].value_counts().items()]
        lines.append(
            f"Table {number}: {', '.join(counts)}; {own['exceeds_noise'].sum()} of the paper's own exceed noise"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ClaimsArguments, description=__doc__)
    output_dir = judge_claims(arguments)
    for line in summary(read_table(output_dir / "claims.csv")):
        print(line)
    if arguments.layers:
        print(*middle_lines(read_table(output_dir / MIDDLE)), sep="\n")
    if arguments.folders:
        print(*when_lines(read_table(output_dir / WHEN)), sep="\n")
    print(f"claims: {output_dir / 'claims.html'}")
