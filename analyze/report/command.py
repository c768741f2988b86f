"""What did a study find? One self-contained HTML page, organised by the paper's questions, drawn from its tables.

    python -m analyze.report outputs/pocket_study --output outputs/pocket_study/report.html
    python -m analyze.report outputs/pocket outputs/swap/sft outputs/swap/rl --output report.html

Each folder is the output directory of a command, recognised by its `run.json`, or of a study: where do abilities live
(swap, skip, attention), what did RL change (abilities, deltas, attention), does its gain transfer with its layers
(splices), was the change of each block necessary (frozen arms), does RL reach more answers (pass@k), and which of the
paper's claims hold. Each question has a one-sentence answer and a figure before any table. Nothing is measured again;
what failed or was not run is listed as missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from analyze.report.attention import attention_part, attention_shift_part
from analyze.report.changes import ability_part, has_splices, splice_part
from analyze.report.claims import claims_part, support_part
from analyze.report.inputs import NECESSITY, Inputs, Output, read_inputs
from analyze.report.necessity import necessity_values
from analyze.report.parts import REWARDED, Figure, Part, Section
from analyze.report.probes import skip_part, swap_part
from analyze.report.start import BASE, draw_levels
from analyze.report.weights import delta_part
from eval.compare.scope import read_comparison
from eval.compare.sentences import could_find
from eval.display.page import page_environment
from eval.statistics.differences import POOLED
from tracking.command import parse_arguments
from tracking.product import check_output_file, write_text
from tracking.tables import read_table

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html.j2"
COMPARE = "eval.compare"

PartMaker = Callable[[Sequence[Output]], Part | None]


def make_sections(inputs: Inputs) -> list[Section]:
    """Returns the paper's questions, each with what there is to answer it."""
    lives = Section(
        anchor="where",
        question="Where do abilities live?",
        lead="Which layers read the picture, which layers does an answer depend on, and which look at the picture?",
    )
    _add(lives, inputs, "analyze.swap", swap_part, "swap")
    _add(lives, inputs, "analyze.skip", skip_part, "skip")
    _add(lives, inputs, "analyze.attention", attention_part, "attention")

    changed = Section(
        anchor="changed",
        question="What did RL change?",
        lead="In the abilities of the model, in its weights, and in its attention to the picture.",
    )
    plain, spliced = _comparisons(inputs, changed)
    _build(changed, ability_part, plain)
    changed.gaps += inputs.gaps_of("ability_comparison", *([] if plain else ["abilities"]))
    _add(changed, inputs, "analyze.deltas", delta_part, "deltas")
    _add(changed, inputs, "analyze.attention", attention_shift_part)

    transfer = Section(
        anchor="transfer",
        question="Does RL’s gain transfer with its layers?",
        lead="Decoder blocks of one model after RL are put into the model before RL. If they carry what this training "
        "run learned, the model gains without training.",
    )
    _build(transfer, partial(splice_part, compared=plain), spliced)
    transfer.gaps += inputs.gaps_of("splices", "splice_comparison")
    if not spliced and not transfer.gaps:
        transfer.gaps.append(_unasked("merge.all, eval.run on its splices and eval.compare"))

    necessary = Section(
        anchor="necessary",
        question="Was the change of each block necessary?",
        lead="Training is repeated from the same start, each time with other decoder layers frozen. If a block’s "
        "change was necessary, the arm that freezes it gains less.",
    )
    for output in inputs.of(NECESSITY):
        necessary.necessity.append(necessity_values(output, plain))
    if not necessary.necessity:
        necessary.gaps += inputs.gaps_of("necessity", NECESSITY) or [_unasked(NECESSITY)]

    support = Section(
        anchor="support",
        question="Does RL reach answers that were out of reach?",
        lead="With many samples a prompt: does RL find answers that the model could not give before (a wider support), "
        "or find more surely those that it could?",
    )
    _add(support, inputs, "eval.support", support_part, "support", *([] if inputs.of("eval.support") else ["samples"]))

    claims = Section(
        anchor="claims",
        question="Which of the paper’s claims hold here?",
        lead="For each statement: do these measurements support it, contradict it, or not decide it?",
    )
    _add(claims, inputs, "eval.claims", claims_part, "claims")
    return [lives, changed, transfer, necessary, support, claims]


def _comparisons(inputs: Inputs, section: Section) -> tuple[list[Output], list[Output]]:
    """Returns the comparisons of trained models, and those with splices."""
    plain: list[Output] = []
    spliced: list[Output] = []
    for output in inputs.of(COMPARE):
        try:
            (spliced if has_splices(output) else plain).append(output)
        except ValueError as error:
            section.gaps.append(f"{output.name}: {error}")
    return plain, spliced


def _add(section: Section, inputs: Inputs, command: str, make: PartMaker, *kinds: str) -> None:
    """Adds what a command wrote, and what is missing of it.

    Args:
        kinds: of the jobs whose gaps belong here; none where another part lists them.
    """
    outputs = inputs.of(command)
    _build(section, make, outputs)
    if kinds:
        gaps = inputs.gaps_of(*kinds, command)
        section.gaps += gaps or ([] if outputs else [_unasked(command)])


def _build(section: Section, make: PartMaker, outputs: Sequence[Output]) -> None:
    """Adds a part; tables that are missing or cannot be read become a gap."""
    if not outputs:
        return
    try:
        part = make(outputs)
    except (ValueError, OSError) as error:
        section.gaps.append(str(error))
        return
    if part is not None:
        section.parts.append(part)


def _unasked(command: str) -> str:
    return f"not measured ({command} measures it)"


def render(inputs: Inputs, title: str) -> str:
    """Returns the page as HTML."""
    sections = make_sections(inputs)
    answered = [section for section in sections if not section.is_empty]
    only_necessity = [section.anchor for section in answered] == ["necessary"] and not inputs.planned
    warnings = [section.warning for section in sections if section.warning]
    return (
        page_environment(TEMPLATES)
        .get_template(PAGE)
        .render(
            name=title,
            sections=answered if only_necessity else sections,
            unanswered=[section for section in sections if section.is_empty] if only_necessity else [],
            only_necessity=only_necessity,
            failed=[part.title for section in sections for part in section.parts if part.failed],
            warning=warnings[0] if warnings else "",
            could_find=_could_find(inputs, sections),
            levels=None if only_necessity else _levels(inputs),
            gaps=inputs.gaps,
            runs=[_run_row(output) for output in inputs.outputs],
            start=min(
                (output.run["attempts"][0]["start"] for output in inputs.outputs if output.run["attempts"]), default=""
            ),
            pocket=any(each["settings"].get("init_config") for section in sections for each in section.necessity),
        )
    )


def _could_find(inputs: Inputs, sections: Sequence[Section]) -> list[str]:
    """Says which differences the study could have found: of its arms, else of the models of its first comparison."""
    for each in (values for section in sections for values in section.necessity):
        if each["could_find"]:
            return list(each["could_find"])
    for output in inputs.of(COMPARE):
        baseline = output.settings["baseline"]
        try:
            table = read_comparison(output.directory / "comparison.csv")
        except ValueError:
            continue  # the section of this comparison names what is wrong with it
        own = table[(table["seed"].astype(str) == POOLED) & (table["against"] == baseline) & (table["arm"] != BASE)]
        if said := could_find(own[own["n"] > 0], baseline):
            return [said]
    return []


def _levels(inputs: Inputs) -> Figure | None:
    """Returns the figure of what base, the start and RL can do, of the first comparison that has scores of them."""
    models = [BASE, "sft", *REWARDED]
    for output in [*inputs.of(COMPARE), *inputs.of(NECESSITY)]:
        for path in (output.directory / "scores.csv", output.directory / "comparison" / "scores.csv"):
            if path.is_file() and {"sft"} < set((scores := read_table(path))["model"]) & set(models):
                return draw_levels(scores, models)
    return None


def _run_row(output: Output) -> dict[str, Any]:
    attempts = output.run["attempts"]
    git = attempts[-1]["git"] if attempts else {"commit": None, "dirty": None}
    return {
        "name": output.name,
        "command": output.command,
        "status": output.run["status"],
        "start": attempts[0]["start"] if attempts else "",
        "num_attempts": len(attempts),
        "commit": f"{(git['commit'] or 'unknown')[:10]}{' +' if git['dirty'] else ''}",
    }


def write_report(directories: Sequence[Path], output: Path) -> None:
    """Writes the page of what these folders hold.

    Raises:
        ValueError: where one of them holds nothing to report on.
    """
    title = ", ".join(dict.fromkeys(directory.resolve().name for directory in directories))
    write_text(output, render(read_inputs(directories), title))


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """The results to show, and the page to write."""

    directories: list[str] = field(
        metadata={
            "help": "output directories of commands, or the folder of a study",
            "positional": True,
            "metavar": "DIR",
        }
    )
    output: str = field(metadata={"help": "HTML page to write", "check": check_output_file})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ReportArguments, description=__doc__, check_inputs=True)
    write_report([Path(directory) for directory in arguments.directories], Path(arguments.output))
    print(f"report: {arguments.output}")
