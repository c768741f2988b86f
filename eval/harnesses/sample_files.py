"""What did lm-evaluation-harness and lmms-eval keep? Their samples files, one line per document and filter.

    samples_TASK_DATE.jsonl      lm-evaluation-harness, with `--log_samples`; beside it results_DATE.json
    DATE_samples_TASK.jsonl      lmms-eval, with `--log_samples`; beside it DATE_results.json

Read as lm-evaluation-harness 0.4.13 and lmms-eval 0.7.3 write them. A document that is scored under several filters
has a line for each: it is one reply with one verdict per metric and filter. If a document has several replies, a
verdict is about all of them together, so none is taken over. The results file tells the model and how replies were
generated; it may be missing. Tasks that score given answers by their log-likelihood have no replies.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.grading import OPENED, continued, opens_thoughts
from eval.harnesses.replies import (
    Fields,
    Measure,
    Reply,
    Source,
    as_score,
    as_text,
    is_number,
    longest_reply,
    need,
    pictures_in,
    read_json,
    read_lines,
)

LM_EVAL, LMMS_EVAL = "lm-eval", "lmms-eval"
NO_TEXT = "scored by log-likelihoods of given answers: there is no reply"
OWN_FIELDS = {
    "doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash", "token_counts", "input_media", "submission",
}  # fmt: skip
"""Fields of a line that are no metrics."""
QUESTION_FIELDS = ("question", "Question", "problem", "query", "input", "prompt", "goal")
SCORE_FIELDS = ("score", "true_false", "correct", "is_correct", "hit", "acc", "accuracy", "judge_result")
ANSWER_FIELDS = ("parsed_pred", "extraction", "extracted_answer", "pred_answer", "prediction", "pred")
"""In a metric that lmms-eval keeps as a mapping, until its aggregation: the verdict, and the answer that was read."""
_LM_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_LMMS_NAME = re.compile(r"(?P<date>.+?)_samples_(?P<task>.+)\.jsonl")
_MODEL_NAME = re.compile(r"(?:pretrained|model|model_version|path)=([^,]+)")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one line of a samples file says, without the parts that the two harnesses spell differently."""

    id: str
    question: str
    responses: tuple[str, ...]
    fields: Fields
    pictures: tuple[str, ...]
    num_tokens: int | None
    measures: Mapping[str, Measure]
    target: Any


def read_lm_eval(path: Path) -> Source:
    """Reads a samples file of lm-evaluation-harness.

    Raises:
        ValueError: naming the line that cannot be read; if no line has a reply.
    """
    name = _LM_NAME.fullmatch(path.name)
    facts = _results(path, f"results_{name['date']}.json" if name else None)
    return _source(path, LM_EVAL, name["task"] if name else path.stem, _lm_line, facts)


def read_lmms_eval(path: Path) -> Source:
    """Reads a samples file of lmms-eval; raises as `read_lm_eval` does."""
    name = _LMMS_NAME.fullmatch(path.name)
    facts = _results(path, f"{name['date']}_results.json" if name else None)
    return _source(path, LMMS_EVAL, name["task"] if name else path.stem, _lmms_line, facts)


def _results(path: Path, name: str | None) -> Fields:
    """Returns the results file beside a samples file; nothing if there is none."""
    beside = path.with_name(name) if name else None
    if beside is None or not beside.is_file():
        return {}
    facts = read_json(beside)
    if not isinstance(facts, dict):
        raise ValueError(f"{beside}: a JSON {type(facts).__name__}; expected the results of the samples beside it")
    return facts


def _source(path: Path, harness: str, task: str, parse: Callable[[Fields, str], Line | None], facts: Fields) -> Source:
    left_out: Counter[str] = Counter()
    lines: dict[str, list[Line]] = {}
    own_generation: Fields = {}
    for where, row in read_lines(path):
        need(row, where, "doc_id", "target", "filtered_resps")
        line = parse(row, where)
        if line is None:
            left_out[NO_TEXT] += 1
            continue
        own_generation = own_generation or _generation_of(row)
        lines.setdefault(line.id, []).append(line)
    if not lines:
        why = f"all {left_out[NO_TEXT]} rows are {NO_TEXT} to grade" if left_out else "it is empty"
        raise ValueError(f"{path}: {why}; expected a task whose output_type is generate_until")
    settings = _settings(facts, task, own_generation)
    replies = [reply for same in lines.values() for reply in _replies(task, same)]
    return Source(
        harness=harness,
        version=facts.get("lm_eval_version") or facts.get("lmms_eval_version"),
        model=_model(facts),
        settings=settings,
        max_new_tokens=longest_reply(settings.get("generation_kwargs") or {}),
        replies=_without_repeated_measures(replies),
        left_out=left_out,
    )


def _replies(task: str, lines: Sequence[Line]) -> Iterator[Reply]:
    """Yields the replies to one document, whose lines differ only in their filter."""
    first = lines[0]
    measures: dict[str, Measure] = {}
    for line in lines:
        for name, measure in line.measures.items():
            number = sum(known == name or known.startswith(f"{name} (") for known in measures)
            measures[f"{name} ({number + 1})" if number else name] = measure
    for sample, response in enumerate(first.responses):
        yield Reply(
            task=task,
            id=first.id,
            sample=sample,
            question=first.question,
            golds=_golds(first.target),
            response=response,
            pictures=first.pictures,
            fields=first.fields,
            measures=measures if len(first.responses) == 1 else {},
            num_tokens=first.num_tokens if len(first.responses) == 1 else None,
        )


def _golds(target: Any) -> tuple[str, ...]:
    """Returns the accepted answers; the harnesses write a list of them as Python spells it."""
    if isinstance(target, str) and target.startswith("["):
        try:
            listed = ast.literal_eval(target)
        except (ValueError, SyntaxError):
            listed = None
        if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
            return tuple(dict.fromkeys(listed))
    return (as_text(target),)


def _lm_line(row: Fields, where: str) -> Line | None:
    need(row, where, "doc", "resps", "arguments")
    asked, wanted = _request(row["arguments"])
    if isinstance(wanted, str) or _is_likelihood(row["resps"]):  # the answer whose likelihood is asked
        return None
    doc = row["doc"] if isinstance(row["doc"], dict) else {}
    opened = isinstance(asked, str) and opens_thoughts(asked)
    responses = tuple(continued(one, opened=opened and OPENED not in one) for one in _leaves(row["resps"]))
    question = next((doc[name] for name in QUESTION_FIELDS if isinstance(doc.get(name), str) and doc[name].strip()), "")
    names = row.get("metrics") or [name for name in row if name not in OWN_FIELDS]
    compared = next(_leaves(row["filtered_resps"]), None)
    filter_name = row.get("filter", "none")
    suffix = "" if filter_name == "none" else f", {filter_name}"
    return Line(
        id=as_text(row["doc_id"]),
        question=question or as_text(asked),
        responses=responses,
        fields=doc,
        pictures=pictures_in(doc),
        num_tokens=None,
        measures={
            f"{name}{suffix}": Measure(score=score, answer=_read(name, compared, responses))
            for name in names
            if (score := as_score(row.get(name))) is not None
        },
        target=row["target"],
    )


def _lmms_line(row: Fields, where: str) -> Line | None:
    kept = row.get("resps", row["filtered_resps"])
    if _is_likelihood(kept):
        return None
    responses = tuple(_leaves(kept))
    compared = next(_leaves(row["filtered_resps"]), None)
    fields: dict[str, Any] = dict(row["doc"]) if isinstance(row.get("doc"), dict) else {}
    measures = {}
    for name, value in row.items():
        if name in OWN_FIELDS:
            continue
        if isinstance(value, dict):
            fields = {**value, **fields}
            found = _measure(value)
        else:
            score = as_score(value)
            found = None if score is None else Measure(score=score, answer=_read(name, compared, responses))
        if found is not None:
            measures[name] = found
    counts = row.get("token_counts") or [None]
    shown = row.get("input")
    return Line(
        id=as_text(row["doc_id"]),
        question=shown if isinstance(shown, str) else as_text(fields.get("question")),
        responses=responses,
        fields=fields,
        pictures=tuple(_leaves(row.get("input_media", []))) or pictures_in(fields),
        num_tokens=counts[0].get("output_tokens") if isinstance(counts[0], dict) else None,
        measures=measures,
        target=row["target"],
    )


def _read(metric: str, compared: str | None, responses: Sequence[str]) -> str | None:
    """Returns the answer that a metric compares with the gold; None if it may have read a part of the whole reply."""
    return compared if metric.startswith("exact_match") or compared not in responses else None


def _measure(value: Fields) -> Measure | None:
    """Returns the verdict in a metric that lmms-eval keeps as a mapping; None if only its aggregation gives one."""
    answer = next((found for name in ANSWER_FIELDS for found in _leaves(value.get(name))), None)
    for name in SCORE_FIELDS:
        score = as_score(value.get(name))
        if score is not None:
            return Measure(score=score, answer=answer)
    if value.get("question_type") == "multiple-choice" and answer is not None and "answer" in value:  # MMMU
        return Measure(score=float(answer == value["answer"]), answer=answer)
    return None


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)


def _is_likelihood(value: Any) -> bool:
    """True for pairs such as `["-1.25", "False"]`: a log-likelihood, and whether the answer is the likeliest one."""
    if not isinstance(value, list) or not value:
        return False
    if len(value) == 2 and value[1] in ("True", "False") and is_number(value[0]):
        return True
    return all(isinstance(one, list) and _is_likelihood(one) for one in value)


def _without_repeated_measures(replies: Sequence[Reply]) -> list[Reply]:
    """Drops a metric that only some rows have where it repeats another: MMStar gives each score also by category."""
    counts = Counter(name for reply in replies for name in reply.measures)
    everywhere = {name for name, count in counts.items() if count == len(replies)}
    found = []
    for reply in replies:
        general = {reply.measures[name].score for name in everywhere & reply.measures.keys()}
        kept = {
            name: measure
            for name, measure in reply.measures.items()
            if name in everywhere or measure.score not in general
        }
        found.append(replace(reply, measures=kept))
    return found


def _generation_of(row: Fields) -> Fields:
    _, wanted = _request(row.get("arguments"))
    return wanted if isinstance(wanted, dict) else {}


def _request(arguments: Any) -> tuple[Any, Any]:
    """Returns the first request of a line: its prompt, and the settings of the generation or the answer to score.

    Before 0.4.3, lm-evaluation-harness wrote lists in place of `gen_args_0` and `arg_0`.
    """
    if isinstance(arguments, dict):
        first = arguments.get("gen_args_0", {})
        return first.get("arg_0"), first.get("arg_1")
    if isinstance(arguments, list) and arguments and isinstance(arguments[0], list):
        return (*arguments[0], None, None)[:2]
    return None, None


def _settings(facts: Fields, task: str, own_generation: Fields) -> dict[str, Any]:
    """Returns what models of a comparison must share, as far as the files say it."""
    config = facts.get("configs", {}).get(task, {})
    general = facts.get("config", {})
    found = {
        "version": facts.get("versions", {}).get(task),
        "num_fewshot": facts.get("n-shot", {}).get(task),
        "generation_kwargs": config.get("generation_kwargs") or own_generation,
        "gen_kwargs": general.get("gen_kwargs"),
        "system_instruction_sha": facts.get("system_instruction_sha"),
        "fewshot_as_multiturn": facts.get("fewshot_as_multiturn"),
    }
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _model(facts: Fields) -> str | None:
    if facts.get("model_name"):
        return str(facts["model_name"])
    arguments = facts.get("config", {}).get("model_args")
    found = _MODEL_NAME.search(arguments) if isinstance(arguments, str) else None
    return found[1] if found else facts.get("model_source")
