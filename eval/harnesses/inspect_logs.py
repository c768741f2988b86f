"""What did inspect_ai keep? Its evaluation logs: `.json` files, and `.eval` files through its own reader.

A `.eval` file is an archive whose compression and layout are inspect_ai's own, so the package reads it (the extra
`inspect`). Without the package, `inspect log convert --to json` makes JSON of it. An epoch is a sample, a scorer is a
metric; `C`, `P`, `I` and `N` are 1, 0.5, 0 and 0. Samples that ended in an error have no reply and stay unscored. Read
as inspect_ai 0.3.285 writes them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.harnesses.replies import (
    Fields,
    Measure,
    Reply,
    Source,
    as_score,
    as_text,
    first_line,
    longest_reply,
    need,
    read_json,
)
from eval.replies.decoding import LENGTH, STOP

INSPECT = "inspect"
VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
LIMITS = ("max_tokens", "model_length")
NOT_OF_REPLIES = (
    "max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout", "cache", "cache_prompt",
    "batch",
)  # fmt: skip
"""Settings of the generation that change no reply."""


def read_inspect(path: Path) -> Source:
    """Reads an evaluation log.

    Raises:
        ValueError: if it is damaged, or a `.eval` file and inspect_ai is not installed.
    """
    log = _own_reader(path) if path.suffix == ".eval" else read_json(path)
    if not isinstance(log, dict):
        raise ValueError(f"{path}: a JSON {type(log).__name__}; expected a log of inspect_ai")
    need(log, str(path), "eval", "samples")
    if not log["samples"]:
        raise ValueError(f"{path}: the log has no samples (status {log.get('status')!r}); run its evaluation again")
    spec = log["eval"]
    generation = _generation(log)
    return Source(
        harness=INSPECT,
        version=spec.get("packages", {}).get("inspect_ai"),
        model=spec.get("model"),
        settings={
            "generation": generation,
            "task_version": spec.get("task_version"),
            "task_args": spec.get("task_args") or {},
            "solver": [
                {"name": step.get("solver"), "params": step.get("params") or {}}
                for step in log.get("plan", {}).get("steps", [])
            ],
        },
        max_new_tokens=longest_reply(generation),
        replies=[
            _reply(as_text(spec["task"]), sample, f"{path}: sample {place}")
            for place, sample in enumerate(log["samples"], start=1)
        ],
    )


def _own_reader(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: reading .eval files needs the package inspect-ai, which is not installed; install it (the extra "
            "`inspect`), or convert the log with: inspect log convert --to json"
        ) from None
    try:
        return json.loads(read_eval_log(str(path)).model_dump_json(exclude_none=True))
    except Exception as error:  # a damaged archive fails in the zip, JSON or schema layer below
        said = first_line(str(error), type(error).__name__)
        raise ValueError(f"{path}: inspect_ai cannot read this log ({said}); copy it again") from error


def _generation(log: Fields) -> dict[str, Any]:
    """Returns the settings that affect replies: the model's, overridden by the plan's."""
    merged = {**(log["eval"].get("model_generate_config") or {}), **(log.get("plan", {}).get("config") or {})}
    return {name: value for name, value in merged.items() if value is not None and name not in NOT_OF_REPLIES}


def _reply(task: str, sample: Any, where: str) -> Reply:
    if not isinstance(sample, dict):
        raise ValueError(f"{where}: a JSON {type(sample).__name__}; expected a sample of inspect_ai")
    need(sample, where, "id", "epoch", "input", "target")
    output = sample.get("output") or {}
    first = (output.get("choices") or [{}])[0]
    target = sample["target"]
    error = sample.get("error")
    question, pictures = _asked(sample["input"])
    return Reply(
        task=task,
        id=as_text(sample["id"]),
        sample=int(sample["epoch"]) - 1,
        question=question,
        golds=tuple(dict.fromkeys(map(as_text, target if isinstance(target, list) else [target]))),
        response=output.get("completion") or "".join(_texts(first.get("message", {}).get("content"))),
        choices=tuple(sample.get("choices") or ()),
        pictures=pictures,
        fields=sample.get("metadata") or {},
        measures=dict(_measures(sample.get("scores") or {})),
        num_tokens=(output.get("usage") or {}).get("output_tokens"),
        finish_reason={"stop": STOP, **dict.fromkeys(LIMITS, LENGTH)}.get(first.get("stop_reason")),
        no_reply=f"the sample ended in an error: {_said(error)}" if error else "",
    )


def _said(error: Any) -> str:
    return first_line(as_text(error.get("message") if isinstance(error, dict) else error), "no message")


def _measures(scores: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    for name, score in scores.items():
        value, answer = score.get("value"), score.get("answer")
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for part, one in parts:
            number = VALUES.get(one) if isinstance(one, str) else as_score(one)
            if number is not None:
                yield (name if part is None else f"{name}/{part}"), Measure(score=number, answer=answer)


def _asked(messages: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the question, and what identifies its pictures, from a sample's input."""
    if isinstance(messages, str):
        return messages, ()
    contents = [message.get("content") for message in messages if message.get("role") == "user"]
    pictures = [
        as_text(part.get("image"))
        for content in contents
        if isinstance(content, list)
        for part in content
        if part.get("type") == "image"
    ]
    return "\n".join(text for content in contents for text in _texts(content)), tuple(pictures)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (as_text(part.get("text")) for part in content if part.get("type") == "text")
