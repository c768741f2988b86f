"""Which harness wrote these files? Recognised by name and fields; the files of one evaluation are read together."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.harnesses.inspect_logs import INSPECT, read_inspect
from eval.harnesses.plain import PLAIN, read_plain
from eval.harnesses.records import named
from eval.harnesses.replies import NotThisFormatError, Source, read_json, read_lines
from eval.harnesses.sample_files import LM_EVAL, LMMS_EVAL, read_lm_eval, read_lmms_eval
from eval.harnesses.tables import TABLES, VLMEVALKIT, read_vlmevalkit
from tracking.command import did_you_mean

READERS: dict[str, Callable[[Path], Source]] = {
    LMMS_EVAL: read_lmms_eval,
    LM_EVAL: read_lm_eval,
    INSPECT: read_inspect,
    VLMEVALKIT: read_vlmevalkit,
    PLAIN: read_plain,
}
"""Harness -> how a file of it is read."""
PATTERNS = ("*_samples_*.jsonl", "samples_*.jsonl", "*.eval")
"""Files that are looked for in a folder."""
EXPECTED = (
    "samples of lmms-eval (DATE_samples_TASK.jsonl) or lm-evaluation-harness (samples_TASK_DATE.jsonl), a log of "
    "inspect_ai (.eval, .json), a table of VLMEvalKit (.xlsx, .tsv, .csv, .json), or a JSONL with id, response and gold"
)


def check_harness(name: str | None) -> None:
    """Refuses an unknown harness."""
    if name is not None and name not in READERS:
        raise ValueError(f"harness {name!r} is unknown; expected one of {', '.join(READERS)}"
                         f"{did_you_mean(name, READERS)}")  # fmt: skip


def check_file(name: str) -> None:
    """Refuses a file or folder that is not there."""
    files_at(Path(name))


def files_at(place: Path) -> list[Path]:
    """Returns a file itself, or the files of a folder that have the names that harnesses give.

    Raises:
        ValueError: if there is nothing to read.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"{place} does not exist; expected {EXPECTED}")
    found = sorted({file for pattern in PATTERNS for file in place.glob(pattern)})
    if not found:
        raise ValueError(f"{place} holds none of {', '.join(PATTERNS)}; name the files themselves")
    return found


def recognise(path: Path) -> str:
    """Returns the harness that wrote a file.

    Raises:
        ValueError: if it is none of those known.
    """
    if path.suffix == ".eval":
        return INSPECT
    if path.suffix in TABLES and path.suffix != ".json":
        return VLMEVALKIT
    if path.suffix == ".json":
        found = _of_json(read_json(path))
    elif path.suffix == ".jsonl":
        first = next(read_lines(path), None)
        if first is None:
            raise ValueError(f"{path} is empty; expected {EXPECTED}")
        found = _of_line(path, first[1])
    else:
        found = None
    if found is None:
        raise ValueError(f"{path}: not recognised; expected {EXPECTED}; --harness names what it is")
    return found


def _of_json(document: Any) -> str | None:
    if isinstance(document, dict) and "eval" in document:
        return INSPECT
    is_table = isinstance(document, list) and bool(document) and isinstance(document[0], dict)
    return VLMEVALKIT if is_table and "prediction" in document[0] else None


def _of_line(path: Path, row: dict[str, Any]) -> str | None:
    if {"doc_id", "filtered_resps"} <= row.keys():
        if "filter" in row or path.name.startswith("samples_"):
            return LM_EVAL
        return LMMS_EVAL if "input" in row or "_samples_" in path.name else LM_EVAL
    return PLAIN if {"id", "response", "gold"} <= row.keys() else None


def read_files(
    names: Sequence[str], *, harness: str | None = None, task: str | None = None, model: str | None = None
) -> Source:
    """Reads all files of one evaluation of one model.

    Args:
        names: files, or folders with files of one harness.
        harness: one of `READERS`; by default recognised from each file.
        task: the task's name in place of the one in the file; only for files with one task.
        model: the model's name in place of the one in the files.

    Raises:
        ValueError: in one line, if a file cannot be read, or the files are not of one evaluation.
    """
    sources: dict[Path, Source] = {}
    for path in dict.fromkeys(file for name in names for file in files_at(Path(name))):
        reader = harness or recognise(path)
        try:
            sources[path] = READERS[reader](path)
        except NotThisFormatError as error:
            raise ValueError(f"{error}; read as {reader}: expected {EXPECTED}") from error
    _check_one_evaluation(sources, model)
    return _joined(list(sources.values()), task, model)


def _check_one_evaluation(sources: dict[Path, Source], model: str | None) -> None:
    for what, values in (
        ("harness", {path: source.harness for path, source in sources.items()}),
        ("model", {path: source.model for path, source in sources.items() if source.model and model is None}),
    ):
        if len(set(values.values())) > 1:
            told = "; ".join(f"{path.name}: {value}" for path, value in values.items())
            raise ValueError(f"the files are not of one {what} ({told}); import each evaluation into its own folder")
    places: dict[str, Path] = {}
    for path, source in sources.items():
        for task in dict.fromkeys(reply.task for reply in source.replies):
            if task in places:
                raise ValueError(f"task {task!r} is in two files, {places[task]} and {path}; name one of them")
            places[task] = path


def _joined(sources: Sequence[Source], task: str | None, model: str | None) -> Source:
    replies = [replace(reply, task=named(reply.task)) for source in sources for reply in source.replies]
    tasks = list(dict.fromkeys(reply.task for reply in replies))
    if task is not None:
        if len(tasks) > 1:
            raise ValueError(f"--task {task}: the files have several tasks, {', '.join(tasks)}; import them one by one")
        replies = [replace(reply, task=named(task)) for reply in replies]
    limits = {source.max_new_tokens for source in sources}
    return Source(
        harness=sources[0].harness,
        version=sources[0].version,
        model=model or next((source.model for source in sources if source.model), None),
        settings={
            named(task or own): dict(source.settings)
            for source in sources
            for own in dict.fromkeys(reply.task for reply in source.replies)
        },
        max_new_tokens=limits.pop() if len(limits) == 1 else None,
        replies=replies,
        left_out=sum((source.left_out for source in sources), Counter()),
    )
