"""Are prompts shared? The argument, without heavy imports."""

from dataclasses import dataclass, field


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
