"""Which step runs next, for how long, and which no longer fits into the time? Pure functions over a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracking.command import did_you_mean

RESERVE_S = 5.0
"""Reserved for ending a step and writing its file."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement, in a separate process."""

    name: str
    question: str
    expected_s: float
    """Expected time on an H100: an estimate until a run is recorded."""
    limit_s: float
    """Time limit; measurements made until then are kept."""
    needs: tuple[str, ...]
    """Modules it imports in addition to those that every step needs."""
    by_default: bool = True


NEEDED = (
    "accelerate", "datasets", "jaxtyping", "jinja2", "math_verify", "matplotlib", "numpy", "pandas", "PIL", "psutil",
    "pyarrow", "qwen_vl_utils", "safetensors", "scipy", "statsmodels", "torch", "torchvision", "transformers", "trl",
    "yaml",
)  # fmt: skip
"""Modules that every step needs."""

STEPS = (
    Step(
        name="tests",
        question="do the tests marked gpu pass (without those of every training mode)?",
        expected_s=60, limit_s=120, needs=("pytest",),
    ),
    Step(
        name="grpo",
        question="what do a step of GRPO and its memory cost at 3B, per arm, beside plain TRL and beside the forecast?",
        expected_s=170, limit_s=270, needs=(),
    ),
    Step(
        name="attention",
        question="what do attention masses over 8,000 tokens cost beside eager attention, and are they the same?",
        expected_s=35, limit_s=80, needs=(),
    ),
    Step(
        name="deltas",
        question="what do weight deltas of 3B and their spectra cost on a GPU, beside svdvals?",
        expected_s=45, limit_s=100, needs=(),
    ),
    Step(
        name="splice",
        question="does a splice in memory answer as the written one does, and what do both cost?",
        expected_s=60, limit_s=110, needs=(),
    ),
    Step(
        name="probes",
        question="how much faster than one generate per layer are swap and skip at 3B?",
        expected_s=75, limit_s=130, needs=(),
    ),
    Step(
        name="rollouts",
        question="does train.grpo run from checkpoint to checkpoint, and what does vLLM change?",
        expected_s=90, limit_s=240, needs=(),
    ),
    Step(
        name="sharing",
        question="what does reading each prompt once save at 3B and 7B, with pictures of 1,280 tokens?",
        expected_s=150, limit_s=270, needs=(),
    ),
    Step(
        name="shapes_7b",
        question="what do forward, backward and the swap cost at 7B?",
        expected_s=50, limit_s=110, needs=(),
    ),
    Step(
        name="modes",
        question="is frozen bit-identical in every training mode (tests/train/test_modes.py)?",
        expected_s=280, limit_s=480, needs=("pytest", "deepspeed"), by_default=False,
    ),
)  # fmt: skip
"""Ordered by information gained per second."""


def choose_steps(names: Sequence[str]) -> list[Step]:
    """Returns the named steps in the table's order; without names, those that run by default.

    Raises:
        ValueError: for an unknown name.
    """
    known = {step.name: step for step in STEPS}
    for name in names:
        if name not in known:
            raise ValueError(f"step {name!r} is unknown{did_you_mean(name, known)} (expected {', '.join(known)})")
    return [step for step in STEPS if step.name in names or (not names and step.by_default)]


def allowance(step: Step, *, left_s: float, limited: bool = True) -> float | None:
    """Returns the seconds allotted to a step; None if it is not expected to fit into the remaining time.

    Args:
        step: step of the table.
        left_s: remaining time.
        limited: False in a rehearsal, which may run on a busy machine.
    """
    usable = left_s - RESERVE_S
    if usable < step.expected_s:
        return None
    return min(step.limit_s, usable) if limited else usable


def format_steps() -> str:
    """Returns the table for `--help`."""
    lines = ["steps, in their order, with the seconds each is expected to take on an H100:"]
    for step in STEPS:
        only = "" if step.by_default else " Only where it is named."
        lines.append(f"  {step.name:<10} {step.expected_s:>4.0f}  {step.question}{only}")
    return "\n".join(lines)
