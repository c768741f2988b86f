"""Which records of an earlier run may another run take over? Those made with the same settings.

A run that asks a superset of an earlier one's questions need not ask them again. Every setting must be equal, except
those that only choose questions; these are named by the caller.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.records import Record, read_finished
from tracking.run import is_finished, plain, read_run
from tracking.sharding import RECORDS_FILE


def earlier_records(
    directory: Path, command: str, settings: Mapping[str, Any], *, choosing: Collection[str]
) -> tuple[dict[str, Any], list[Record]]:
    """Returns the settings and the records of a finished run of a command, if its settings are equal.

    Args:
        directory: the output directory of the earlier run.
        settings: the settings of the run that takes its records over.
        choosing: names of settings that choose units of work and do not affect a unit's record; they may differ.

    Raises:
        ValueError: if the directory is of another command, is unfinished, or has a setting that differs.
    """
    state = read_run(directory)
    if state["command"] != command:
        raise ValueError(f"{directory} was written by {state['command']}; expected results of {command}")
    if not is_finished(directory):
        raise ValueError(f"{directory} is not finished; finish it first, or leave it out")
    earlier: dict[str, Any] = state["settings"]
    settings = plain(settings)
    differing = [
        f"{name} {_short(earlier.get(name))} there and {_short(settings.get(name))} here"
        for name in dict.fromkeys([*settings, *earlier])
        if name not in choosing and earlier.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(f"{directory} was made with other settings: {'; '.join(differing)}")
    return earlier, list(read_finished(directory / RECORDS_FILE))


def merged_by_key(parts: Sequence[Sequence[Record]]) -> dict[str, Record]:
    """Returns the records of several runs by key; of equal keys, the first one's."""
    found: dict[str, Record] = {}
    for records in parts:
        found = {record["key"]: record for record in records} | found
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
