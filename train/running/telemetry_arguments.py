"""What does a run measure of each block? Apart from `telemetry.py`, which imports Transformers."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TelemetryArguments:
    """What is measured beside TRL's own metrics."""

    telemetry_steps: int = field(
        default=10, metadata={"help": "steps between measures of gradient and update per block; 0: none"}
    )
    telemetry_elements: int = field(
        default=65_536, metadata={"help": "larger tensors are measured by a sample of so many elements"}
    )

    def __post_init__(self) -> None:
        if self.telemetry_steps < 0:
            raise ValueError(f"telemetry_steps is {self.telemetry_steps}; expected a number of steps, or 0 for none")
        if self.telemetry_elements < 1:
            raise ValueError(f"telemetry_elements is {self.telemetry_elements}; expected at least 1")
