"""What does a run measure of each block? Apart from `telemetry.py`, which imports Transformers."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TelemetryArguments:
    """Measurements in addition to TRL's metrics."""

    telemetry_steps: int = field(
        default=10, metadata={"help": "steps between two measurements of gradient and update norms per block; 0: none"}
    )
    telemetry_elements: int = field(
        default=65_536, metadata={"help": "maximum number of elements measured per tensor; larger tensors are sampled"}
    )

    def __post_init__(self) -> None:
        if self.telemetry_steps < 0:
            raise ValueError(f"telemetry_steps is {self.telemetry_steps}; expected a number of steps, or 0 for none")
        if self.telemetry_elements < 1:
            raise ValueError(f"telemetry_elements is {self.telemetry_elements}; expected at least 1")
