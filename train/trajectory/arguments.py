"""Which steps of a run are kept as changes against its start?"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TrajectoryArguments:
    """The kept steps."""

    keep_trajectory: int = field(
        default=0,
        metadata={
            "help": "keep the weights every this many steps, and after the last, in trajectory/: only the elements "
            "that differ from the start, bit for bit (restored by merge.restore); 0: none"
        },
    )

    def __post_init__(self) -> None:
        if self.keep_trajectory < 0:
            raise ValueError(f"keep_trajectory is {self.keep_trajectory}; expected a number of steps, or 0 for none")

    @property
    def settings(self) -> dict[str, int]:
        """The settings of a run, empty if no step is kept: runs begun before this argument existed can continue."""
        return {"keep_trajectory": self.keep_trajectory} if self.keep_trajectory else {}


def check_adapters(arguments: TrajectoryArguments, *, lora: bool) -> None:
    """Refuses to keep steps of a run that trains adapters: merged, all elements of the adapted maps change.

    Raises:
        ValueError: if steps would be kept.
    """
    if lora and arguments.keep_trajectory:
        raise ValueError(
            f"keep_trajectory is {arguments.keep_trajectory} and use_peft is on; expected 0, because the adapter is "
            "small and its checkpoints hold it whole: set save_steps instead"
        )
