"""Which engine sampled a model's rollouts, how far was it from the trainer, and are two models comparable in this?

A checkpoint trained with GRPO may contain `rollout.json`:

    {"engine": "vllm 0.31.0", "engine_dtype": "bfloat16", "trainer_dtype": "float32", "corrected": false,
     "gap": {"text": {"mean": 0.004, "p99": 0.05, "rounding": 0.004, "num_steps": 40}, "images": {…}}}

`gap` is the absolute difference between engine and trainer in a sampled token's log-probability, in nats per token, for
prompts without and with images; `rounding` is the part of its mean that rounding alone explains. It is empty if the
trainer itself sampled. `eval.run` copies it into `run.json`.
Two models whose rollouts came from different mixtures of policies differ in more than the frozen parts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.recipes.companions import ROLLOUT_FILE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROLLOUT_FILE", "doubts", "read_rollout", "rollout_of", "rollout_table"]

KEYS = ("engine", "engine_dtype", "trainer_dtype", "corrected", "gap")
GAP_KEYS = ("mean", "p99", "rounding", "num_steps")
KINDS = {"text": "prompts without pictures", "images": "prompts with pictures"}
MAX_GAP_RATIO = 1.5
"""Ratio of two models' mean gaps above which they count as different."""
NEGLIGIBLE_GAP = 1e-3
"""Nats per token: a smaller gap changes no probability by more than 0.1 % and counts as zero."""
COLUMNS = ("model", *KEYS[:-1], "prompts", *GAP_KEYS)
CONSEQUENCE = "these models learned from different mixtures of samples, so a difference between them may come from that"

Rollout = dict[str, Any]


def read_rollout(directory: Path) -> Rollout | None:
    """Reads how a checkpoint's rollouts were sampled; None if this is not recorded.

    Raises:
        ValueError: if the file is damaged.
    """
    path = directory / ROLLOUT_FILE
    if not path.is_file():
        return None
    try:
        rollout: Rollout = json.loads(path.read_text(encoding="utf-8"))
        known = all(key in rollout for key in KEYS)
        gaps = [float(gap[name]) for gap in rollout["gap"].values() for name in GAP_KEYS]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); train again, or remove it") from error
    if not known or any(not gap >= 0 for gap in gaps):
        raise ValueError(f"{path}: expected {', '.join(KEYS)}, and gaps of at least 0; train again, or remove it")
    return rollout


def rollout_of(run: Mapping[str, Any]) -> Rollout | None:
    """Returns the model's rollouts as recorded in an evaluation's `run.json`; None if they are not."""
    noted = [attempt["rollout"] for attempt in run["attempts"] if attempt.get("rollout")]
    return noted[-1] if noted else None


def rollout_table(rollouts: Mapping[str, Rollout]) -> "pd.DataFrame":
    """Returns one row per model and kind of prompt, or one per model if there is no gap.

    Args:
        rollouts: model label -> its rollouts.
    """
    import pandas as pd

    rows = []
    for model, rollout in rollouts.items():
        facts = {"model": model, **{key: rollout[key] for key in KEYS[:-1]}}
        rows += [{**facts, "prompts": kind, **gap} for kind, gap in rollout["gap"].items()] or [facts]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def doubts(rollouts: Mapping[str, Rollout]) -> list[str]:
    """Returns a sentence for each difference in rollouts that makes a comparison of the models doubtful."""
    found = [
        f"The rollouts of the compared models came from different engines: {_named(engines)}; {CONSEQUENCE}."
        for engines in [_groups(rollouts, _engine)]
        if len(engines) > 1
    ]
    by_engine = {model: rollout for model, rollout in rollouts.items() if rollout["gap"]}
    corrections = _groups(by_engine, lambda rollout: "corrected" if rollout["corrected"] else "not corrected")
    if len(corrections) > 1:
        found.append(
            f"The difference between engine and trainer was corrected for in some models only: {_named(corrections)}; "
            f"{CONSEQUENCE}."
        )
    kinds = dict.fromkeys(kind for rollout in rollouts.values() for kind in rollout["gap"])
    for kind in kinds:
        means = {model: rollout["gap"][kind]["mean"] for model, rollout in rollouts.items() if kind in rollout["gap"]}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        if means[high] > NEGLIGIBLE_GAP and means[high] > MAX_GAP_RATIO * means[low]:
            prompts = KINDS.get(kind, f"prompts of {kind}")
            found.append(
                f"On {prompts} the engine was farther from the trainer in {high} than in {low}: a mean gap "
                f"of {means[high]:.3g} nats per token against {means[low]:.3g}; {CONSEQUENCE}."
            )
    return found


def _engine(rollout: Rollout) -> str:
    return f"{rollout['engine']} in {rollout['engine_dtype']}, trained in {rollout['trainer_dtype']}"


def _groups(rollouts: Mapping[str, Rollout], value: Any) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for model, rollout in rollouts.items():
        groups.setdefault(value(rollout), []).append(model)
    return groups


def _named(groups: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(models)})" for value, models in groups.items())
