"""Are prompts shared? The argument, without heavy imports."""

from dataclasses import dataclass, field
from pathlib import Path

from tracking.run import RUN_FILE, read_run


@dataclass(frozen=True, kw_only=True)
class SharingArguments:
    """How the prompts of a group are read."""

    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "whether each prompt is read once for all its replies, and each distinct picture once; the result "
            "is the same but for rounding, in less time; false: TRL's own computation"
        },
    )


def begun_without_sharing(directory: Path, command: str) -> bool:
    """True if a command's run in a folder was begun before `share_prompts` existed, and so computes as TRL does.

    Its `run.json` does not have the setting.
    """
    if not (directory / RUN_FILE).is_file():
        return False
    run = read_run(directory)
    return bool(run["command"] == command) and "share_prompts" not in run["settings"]
