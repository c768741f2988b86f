"""What was found? One self-contained HTML page, organised by the paper's questions, drawn from the tables of a study.

    python -m analyze.report outputs/pocket_study --output outputs/pocket_study/report.html
    python -m analyze.report outputs/pocket outputs/swap/sft outputs/swap/rl --output report.html

Each folder is the output directory of a command, told by its `run.json`, or a study's: where do abilities live (swap,
skip, attention), what did RL change (abilities, deltas, attention shift), does it transfer (splices), is it necessary
(frozen arms), is the support widened (pass@k), and what can be said of the paper's claims. Nothing is measured anew;
what failed or was not run stands on the page as missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyze.report.attention import attention_part, attention_shift_part
from analyze.report.changes import ability_part, delta_part, has_splices, splice_part
from analyze.report.claims import claims_part, support_part
from analyze.report.inputs import NECESSITY, Inputs, Output, read_inputs
from analyze.report.necessity import necessity_values
from analyze.report.parts import Part, Section
from analyze.report.probes import skip_part, swap_part
from tracking.command import parse_arguments
from tracking.product import write_text

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html.j2"
COMPARE = "eval.compare"

PartMaker = Callable[[Sequence[Output]], Part | None]


def make_sections(inputs: Inputs) -> list[Section]:
    """Returns the paper's questions, each with what there is to answer it."""
    lives = Section(
        anchor="where",
        question="Where do abilities live?",
        lead="Which layers read the picture, which does an answer need, and where does the model look?",
    )
    _add(lives, inputs, "analyze.swap", swap_part, "swap")
    _add(lives, inputs, "analyze.skip", skip_part, "skip")
    _add(lives, inputs, "analyze.attention", attention_part, "attention")

    changed = Section(
        anchor="changed",
        question="What did RL change?",
        lead="In what the model can do, in its weights, and in where it looks.",
    )
    plain, spliced = _comparisons(inputs, changed)
    _build(changed, ability_part, plain)
    changed.gaps += inputs.gaps_of("ability_comparison", *([] if plain else ["abilities"]))
    _add(changed, inputs, "analyze.deltas", delta_part, "deltas")
    _add(changed, inputs, "analyze.attention", attention_shift_part)

    transfer = Section(
        anchor="transfer",
        question="Does it transfer?",
        lead="If RL’s layers carry what it learned, they should bring it along into the model before RL.",
    )
    _build(transfer, splice_part, spliced)
    transfer.gaps += inputs.gaps_of("splices", "splice_comparison")
    if not spliced and not transfer.gaps:
        transfer.gaps.append(_unasked("merge.all, eval.run on its splices and eval.compare"))

    necessary = Section(
        anchor="necessary",
        question="Is it necessary?",
        lead="The same training from the same start, each time with other decoder layers frozen: what of RL’s gain is "
        "left where a block may not change?",
    )
    for output in inputs.of(NECESSITY):
        necessary.necessity.append(necessity_values(output))
    if not necessary.necessity:
        necessary.gaps += inputs.gaps_of("necessity", NECESSITY) or [_unasked(NECESSITY)]

    support = Section(
        anchor="support",
        question="Is the support widened?",
        lead="Does RL reach answers that the model could not give before, or give more surely those that it could?",
    )
    _add(support, inputs, "eval.support", support_part, "support", *([] if inputs.of("eval.support") else ["samples"]))

    claims = Section(
        anchor="claims",
        question="What can be said of the paper’s claims?",
        lead="Statement by statement: do these measurements support or contradict it, or are they too few to tell?",
    )
    _add(claims, inputs, "eval.claims", claims_part, "claims")
    return [lives, changed, transfer, necessary, support, claims]


def _comparisons(inputs: Inputs, section: Section) -> tuple[list[Output], list[Output]]:
    """Returns the comparisons of trained models, and those with hybrids."""
    plain: list[Output] = []
    spliced: list[Output] = []
    for output in inputs.of(COMPARE):
        try:
            (spliced if has_splices(output) else plain).append(output)
        except ValueError as error:
            section.gaps.append(f"{output.name}: {error}")
    return plain, spliced


def _add(section: Section, inputs: Inputs, command: str, make: PartMaker, *kinds: str) -> None:
    """Adds what a command left, and what is missing of it.

    Args:
        kinds: of the jobs whose gaps belong here; none where another part has told them.
    """
    outputs = inputs.of(command)
    _build(section, make, outputs)
    if kinds:
        gaps = inputs.gaps_of(*kinds, command)
        section.gaps += gaps or ([] if outputs else [_unasked(command)])


def _build(section: Section, make: PartMaker, outputs: Sequence[Output]) -> None:
    """Adds a part; tables that are missing or cannot be read are a gap, and no end of the page."""
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
    return f"not asked; {command} would tell"


def render(inputs: Inputs, title: str) -> str:
    """Returns the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = make_sections(inputs)
    answered = [section for section in sections if not section.is_empty]
    only_necessity = [section.anchor for section in answered] == ["necessary"] and not inputs.planned
    return environment.get_template(PAGE).render(
        name=title,
        sections=answered if only_necessity else sections,
        unanswered=[section for section in sections if section.is_empty] if only_necessity else [],
        only_necessity=only_necessity,
        gaps=inputs.gaps,
        runs=[_run_row(output) for output in inputs.outputs],
        start=min(
            (output.run["attempts"][0]["start"] for output in inputs.outputs if output.run["attempts"]), default=""
        ),
        pocket=any(each["settings"].get("init_config") for section in sections for each in section.necessity),
    )


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
    """What the page shows, and where it is written."""

    directories: list[str] = field(
        metadata={"help": "output directories of commands, or a study's folder", "positional": True, "metavar": "DIR"}
    )
    output: str = field(metadata={"help": "the page to write"})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ReportArguments, description=__doc__)
    write_report([Path(directory) for directory in arguments.directories], Path(arguments.output))
    print(f"report: {arguments.output}")
