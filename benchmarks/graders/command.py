"""Do graders of other packages agree with this one? The same 40 replies under each, as a page of the guides.

    python -m benchmarks.graders --verl ENV/bin/python --lmms-eval ENV/bin/python --output docs/guides/graders.md

The replies and what is right are in `cases.jsonl`, labelled by hand. math-verify and TRL are in this suite's own
environment. verl (0.9 with mathruler) and lmms-eval need environments of their own; without them their verdicts kept in
`benchmarks/results/graders.json` are used. Every verdict on the page comes from the real package. A reward of more than
one half counts as *right*: verl's `geo3k` gives 0.9 for the answer and 0.1 for its form, `<think>…</think>` with a box.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.choices import LETTERS
from eval.grading import grade
from eval.tasks.benchmark import named_choice
from tracking.command import parse_arguments
from tracking.product import check_output_file, write_text

HERE = Path(__file__).parent
CASES = HERE / "cases.jsonl"
RESULTS = HERE.parent / "results" / "graders.json"
GUIDE = "docs/guides/graders.md"
OURS = "this suite"
NAMES = {
    "math-verify": "math-verify",
    "trl": "TRL `accuracy_reward`",
    "verl-geo3k": "verl `geo3k`",
    "verl-gsm8k": "verl `gsm8k`",
    "lmms-eval": "lmms-eval",
}
"""Judge of `outside.py` -> heading of its column."""
REPLY_CHARS = 78
RIGHT_ABOVE = 0.5
"""Rewards above it count as right."""
_LONE_LETTER = re.compile(r"(?:^|[\s=])[A-Z](?:/|$|\s|=)")

Case = dict[str, Any]
Result = dict[str, Any]
"""A package, its version, and its verdicts on the cases."""
Verdicts = Mapping[str, Sequence[bool | None]]
"""Grader -> for each case whether it takes the reply for right; None where it does not apply or gives no verdict."""


@dataclass(frozen=True, kw_only=True)
class GradersArguments:
    """The interpreters of the environments of other packages, and the page to write."""

    verl: str | None = field(
        default=None,
        metadata={
            "help": "interpreter of an environment with verl and mathruler; by default the kept verdicts are used"
        },
    )
    lmms_eval: str | None = field(
        default=None,
        metadata={"help": "interpreter of an environment with lmms-eval; by default the kept verdicts are used"},
    )
    output: str = field(default=GUIDE, metadata={"help": "the page that is written", "check": check_output_file})


def read_cases(path: Path = CASES) -> list[Case]:
    """Reads the labelled replies."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ours(cases: Sequence[Case]) -> list[bool | None]:
    """Returns this suite's verdicts."""
    found = []
    for case in cases:
        choices = tuple(case.get("choices", ()))
        gold = named_choice(case["gold"], choices) if choices else case["gold"]
        found.append(grade(case["reply"], gold, case["kind"], choices).correct)
    return found


def judged(judge: str, interpreter: str, cases: Sequence[Case]) -> Result:
    """Returns the package, the version and the verdicts of another grader.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    asked = [
        {
            "reply": case["reply"],
            "gold": case["gold"],
            "kind": case["kind"],
            "letters": LETTERS[: len(case.get("choices", ()))],
        }
        for case in cases
    ]
    done = subprocess.run(
        [interpreter, str(HERE / "outside.py"), judge],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{judge} ended with exit status {done.returncode}:\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    verdicts = [None if reward is None else reward > RIGHT_ABOVE for reward in answer["rewards"]]
    return {"package": answer["package"], "version": answer["version"], "verdicts": verdicts}


def read_results(cases: Sequence[Case], path: Path = RESULTS) -> dict[str, Result]:
    """Reads the kept verdicts of other packages.

    Raises:
        ValueError: if they are of other cases.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["cases_sha256"] != _sha256(cases):
        raise ValueError(f"{path} has verdicts on other cases than {CASES}; give --verl and --lmms-eval")
    return dict(kept["results"])


def write_results(results: Mapping[str, Result], cases: Sequence[Case], path: Path = RESULTS) -> None:
    """Keeps the verdicts of other packages, one package a line."""
    lines = ",\n".join(f"  {json.dumps(judge)}: {json.dumps(found)}" for judge, found in results.items())
    write_text(path, f'{{"cases_sha256": "{_sha256(cases)}", "results": {{\n{lines}\n}}}}\n')


def _sha256(cases: Sequence[Case]) -> str:
    return hashlib.sha256(json.dumps(cases, sort_keys=True).encode()).hexdigest()


def page(cases: Sequence[Case], results: Mapping[str, Result]) -> str:
    """Returns the page: this suite's verdicts of today beside those of the other packages."""
    versions = {found["package"]: found["version"] for found in results.values()}
    return render(cases, {OURS: ours(cases), **{judge: one["verdicts"] for judge, one in results.items()}}, versions)


def render(cases: Sequence[Case], verdicts: Verdicts, versions: Mapping[str, str]) -> str:
    """Returns the page."""
    rows = [
        [str(number), _code(case["reply"]), _code(case["gold"]), _word(case["right"])]
        for number, case in enumerate(cases, start=1)
    ]
    for number, (row, case) in enumerate(zip(rows, cases, strict=True)):
        found = [own[number] for own in verdicts.values()]
        row += [*(_mark(verdict, case["right"]) for verdict in found), case["about"], _effect(found, case["right"])]
    head = ["case", "reply", "gold", "label", *(NAMES.get(grader, grader) for grader in verdicts), "about"]
    head += ["the bold verdicts"]
    return PAGE.format(
        num_cases=len(cases),
        tools="\n".join(f"- {name} {number}" for name, number in versions.items()),
        counts="\n".join(_count_rows(cases, verdicts)),
        cases="\n".join(_table([head, *rows])),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _code(text: str) -> str:
    """Returns a text as code in a cell of a table, on one line; a letter that stands alone is no placeholder."""
    text = text.replace("\n", " ⏎ ").replace("|", "\\|").replace("```", "'''")
    text = text if len(text) <= REPLY_CHARS else text[: REPLY_CHARS - 1] + "…"
    return f"<code>{text}</code>" if _LONE_LETTER.search(text) else f"`{text}`"


def _word(right: bool) -> str:
    return "right" if right else "wrong"


def _mark(verdict: bool | None, right: bool) -> str:
    if verdict is None:
        return "–"
    return _word(verdict) if verdict == right else f"**{_word(verdict)}**"


def _count_rows(cases: Sequence[Case], verdicts: Verdicts) -> list[str]:
    rows = [["grader", "judged", "as labelled", "right replies without reward", "wrong replies with reward"]]
    for grader, found in verdicts.items():
        both = Counter((one, case["right"]) for one, case in zip(found, cases, strict=True) if one is not None)
        counts = (both.total(), both[True, True] + both[False, False], both[False, True], both[True, False])
        rows.append([NAMES.get(grader, grader), *map(str, counts)])
    return _table(rows)


def _effect(found: Sequence[bool | None], right: bool) -> str:
    """Returns what the verdicts that are not as labelled would do to a reward."""
    if all(verdict in (None, right) for verdict in found):
        return ""
    return "give no reward for a right reply" if right else "reward a wrong reply"


PAGE = """# Do graders agree?

A reward and a score are only as good as the grader behind them. This page shows {num_cases} replies under this suite's
grader and under five that others use for rewards and benchmarks. What is right was labelled by hand, from the reply and
the gold. The replies are of kinds that models write often; they were chosen because graders disagree on them, so the
counts say nothing about how often a grader errs on a benchmark.

The page is written by a command that runs the real packages, and was not edited afterwards:

{tools}

```bash
python -m benchmarks.graders --verl VERL/bin/python --lmms-eval LMMS/bin/python  # needs the network
```

VERL and LMMS are environments with `verl` and `mathruler`, and with `lmms-eval`, from PyPI. Without them the command
takes their verdicts from `benchmarks/results/graders.json` and judges again with the packages of this suite's own
environment.

{counts}

lmms-eval's reader of options (`extract_mcq_answer`) judges only choices. verl's `gsm8k` reads only a number behind
`####`, and verl's `geo3k` only a box: on other replies they give no reward by design. That is harmless if the prompt
asks for this form and the model keeps to it. It is not if replies of a model that was trained on another form are
scored.

## All replies

A right reply without a reward teaches the model to avoid its form. A wrong reply with a reward teaches it the mistake:
GRPO raises the probability of every reply above its group's mean. The last column says which of the two the bold
verdicts do; bold means not as labelled. ⏎ is a line break. The options of choices are in
`benchmarks/graders/cases.jsonl`.

{cases}

## Pitfalls

- **A score depends on its grader.** Compare models only under one grader. `eval.import` reads the replies that other
  harnesses keep and lists every verdict that differs ([import](import.md)).
- **math-verify compares mathematics.** It is not meant for letters or words: it takes a letter as a variable.
- **Rewards by form.** A grader that reads one form makes the form part of the task. Compare `eval.compare`'s accuracy
  *where both are well-formed* too.

Code: `benchmarks/graders/` (`outside.py` calls the packages), `eval/grading/` (this suite's grader,
[grading](grading.md)).
"""


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, GradersArguments, description=__doc__, check_inputs=True)
    cases = read_cases()
    interpreters = {"math-verify": sys.executable, "trl": sys.executable}
    if arguments.verl:
        interpreters |= {"verl-geo3k": arguments.verl, "verl-gsm8k": arguments.verl}
    if arguments.lmms_eval:
        interpreters["lmms-eval"] = arguments.lmms_eval
    kept = {} if interpreters.keys() == NAMES.keys() else read_results(cases)
    results = {
        judge: judged(judge, interpreters[judge], cases) if judge in interpreters else kept[judge] for judge in NAMES
    }
    write_results(results, cases)
    write_text(Path(arguments.output), page(cases, results))
    for grader, own in {OURS: ours(cases), **{judge: found["verdicts"] for judge, found in results.items()}}.items():
        agreed = sum(one == case["right"] for one, case in zip(own, cases, strict=True) if one is not None)
        print(f"{grader}: {agreed} of {sum(one is not None for one in own)} as labelled")
    print(f"page: {arguments.output}")
