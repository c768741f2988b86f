r"""How is each imported answer graded, and what is its gold? Found per task, from the rows' own fields.

The first of these that applies:

    told       `--kind KIND` or `--kind TASK=KIND`
    by field   `answer_kind`, a kind of this suite
    options    a row that offers options is a choice
    by field   `answer_type`, with MathVista's names
    by golds   if all golds left in the task are yes or no, letters, numbers, or formulas with LaTeX commands

Otherwise it cannot be told: a word may be graded as text or as mathematics, and `1, 2` as a list or as a text.
`--kind by-gold` lets each gold decide for itself (`eval.tasks.benchmark.free_answer_kind`). Golds may be solutions: the
text after GSM8K's `####` and the content of the last `\boxed{…}` are the answer.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data_builders.prompt_sets.choices import LETTERS
from eval.grading import KINDS, last_boxed, parse_number
from eval.harnesses.choices import letter_in, options_in, options_of, right_option
from eval.harnesses.replies import Fields, Reply, as_text
from eval.tasks.benchmark import free_answer_kind
from tracking.command import did_you_mean

BY_GOLD = "by-gold"
ALL_TASKS = ""
NUM_EXAMPLES = 3
ANSWER_TYPES = {"integer": "number", "float": "number", "list": "list", "text": "text"}
"""MathVista's names, which other benchmarks took over."""
SEVERAL_GOLDS = "several different golds, of which the grader takes one"
NO_GOLD = "no gold answer"
NO_SUCH_OPTION = "the gold names none of the options"
TOO_MANY_OPTIONS = f"more than {len(LETTERS)} options"
_COMMAND = re.compile(r"\\[a-zA-Z]+|\^")
_YES_NO = ("yes", "no", "true", "false")


def parse_kinds(texts: Sequence[str]) -> dict[str, str]:
    """Parses `--kind`: KIND for all tasks, or TASK=KIND.

    Raises:
        ValueError: for an unknown kind.
    """
    kinds = {}
    for text in texts:
        task, equals, kind = text.rpartition("=")
        if kind not in (*KINDS, BY_GOLD):
            known = (*KINDS, BY_GOLD)
            raise ValueError(f"--kind {text}: expected KIND or TASK=KIND, one of {', '.join(known)}"
                             f"{did_you_mean(kind, known)}")  # fmt: skip
        kinds[task if equals else ALL_TASKS] = kind
    return kinds


def settle(
    replies: Sequence[Reply], kinds: Mapping[str, str], gold_is: str | None = None
) -> tuple[list[Reply], Counter[str]]:
    """Returns the replies that can be graded, each with its kind and one gold, and why others are left out.

    Args:
        replies: as read from the files.
        kinds: from `parse_kinds`.
        gold_is: as `right_option` takes it.

    Raises:
        ValueError: in one line, if a kind or a gold cannot be told, or a named task is not there.
    """
    tasks = dict.fromkeys(reply.task for reply in replies)
    for task in kinds:
        if task != ALL_TASKS and task not in tasks:
            raise ValueError(f"--kind {task}={kinds[task]}: no such task; the files have {', '.join(tasks)}")
    left_out: Counter[str] = Counter()
    settled: list[Reply] = []
    for reply in replies:
        told = kinds.get(reply.task, kinds.get(ALL_TASKS))
        try:
            found = _with_gold(reply, told, gold_is)
        except ValueError as error:
            raise ValueError(f"{reply.task}, {reply.id}: {error}") from error
        if isinstance(found, str):
            left_out[found] += 1
        else:
            settled.append(found)
    for task in tasks:
        open_golds = {reply.gold for reply in settled if reply.task == task and reply.kind is None}
        if open_golds:
            kind = kind_of_golds(sorted(open_golds), task)
            settled = [
                replace(reply, kind=kind) if reply.task == task and reply.kind is None else reply for reply in settled
            ]
    return settled, left_out


def _with_gold(reply: Reply, told: str | None, gold_is: str | None) -> Reply | str:
    """Returns a reply with one gold, its options and, if the row alone tells it, its kind; or why it is left out."""
    golds = {answer_of(gold): None for gold in reply.golds}
    if len(golds) > 1:
        return SEVERAL_GOLDS
    gold = next(iter(golds), "")
    if not gold:
        return NO_GOLD
    kind = (None if told == BY_GOLD else told) or reply.kind or _kind_named(reply.fields)
    choices = reply.choices or options_of(reply.fields)
    is_offered = bool(choices)
    choices = choices or (options_in(reply.question) if letter_in(gold) else ())
    if choices and kind in (None, "choice"):
        if len(choices) > len(LETTERS):
            return TOO_MANY_OPTIONS
        right = right_option(gold, choices, gold_is)
        if right is not None:
            return replace(reply, golds=(right,), kind="choice", choices=tuple(choices))
        if is_offered:
            return NO_SUCH_OPTION
    answer_type = as_text(reply.fields.get("answer_type")).lower()
    kind = kind or ANSWER_TYPES.get(answer_type)
    if answer_type == "float" and reply.precision is None:
        reply = replace(reply, precision=_decimals(reply.fields.get("precision")))
    if kind == "choice":
        gold = letter_in(gold) or gold
    return replace(reply, golds=(gold,), choices=(), kind=kind or (free_answer_kind(gold) if told == BY_GOLD else None))


def _decimals(value: object) -> int | None:
    """Returns MathVista's precision, which tables hold as `1.0`; None if there is none."""
    try:
        return int(float(str(value)))
    except ValueError:
        return None


def answer_of(gold: str) -> str:
    """Returns the answer in a gold that may be a whole solution."""
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    boxed = last_boxed(gold)
    return (gold if boxed is None else boxed).strip()


def _kind_named(fields: Fields) -> str | None:
    named = as_text(fields.get("answer_kind"))
    return named if named in KINDS else None


def kind_of_golds(golds: Sequence[str], task: str) -> str:
    """Returns the kind that all golds of a task have.

    Raises:
        ValueError: naming golds, if they do not tell.
    """
    if all(gold.casefold() in _YES_NO for gold in golds):
        return "yes_no"
    if all(letter_in(gold) for gold in golds):
        return "choice"
    if any(_COMMAND.search(gold) for gold in golds):
        return "math"
    open_golds = [gold for gold in golds if parse_number(gold) is None]
    if not open_golds:
        return "number"
    examples = ", ".join(repr(gold[:40]) for gold in open_golds[:NUM_EXAMPLES])
    raise ValueError(
        f"{task}: how answers are graded cannot be told from golds such as {examples}; give --kind with one of "
        f"{', '.join(KINDS)}, or {BY_GOLD} to let each gold decide ({task}=KIND for this task alone)"
    )
