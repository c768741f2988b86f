"""Which engine generated the replies of a run? Writes `rollout.json` to `final/`, for comparisons of models.

    {"engine": "vllm 0.31.0", "engine_dtype": "bfloat16", "trainer_dtype": "float32", "corrected": false,
     "gap": {"images": {"mean": 0.002, "p99": 0.04, "rounding": 0.002, "num_steps": 40}, "text": {…}},
     "weight_sync": {"num_syncs": 40, "sent_bytes": …, "whole_bytes": …, "num_compared": …}}

`gap` is |log p_engine - log p_trainer| of the sampled tokens, in nats per token, averaged over the logged steps;
`rounding` is the effect of rounding alone (`gap.py`). Arms with different gaps were trained on replies of policies that
deviate from their own to different degrees.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.replies.rollouts import ROLLOUT_FILE
from tracking.product import write_text
from tracking.records import Record

TEXT, IMAGES = "text", "images"
KINDS = (TEXT, IMAGES)
"""Prompts without and with pictures."""
GAP, GAP_P99, ROUNDING = "rollout_gap", "rollout_gap_p99", "rollout_rounding"
"""Columns of `metrics.csv`, each followed by `/text` or `/images`."""


@dataclass(frozen=True, kw_only=True)
class RolloutRecord:
    """The engine that generates the replies, as known before training."""

    engine: str
    """Name and version."""
    engine_dtype: str
    trainer_dtype: str
    """Dtype of the trainer's arithmetic."""
    corrected: bool
    """True if the loss is weighted by the ratio of the trainer's to the engine's probabilities."""


def write_rollout(directory: Path, record: RolloutRecord, rows: Iterable[Record], facts: Mapping[str, Any]) -> None:
    """Writes the record of a run next to its weights.

    Args:
        directory: the checkpoint's folder.
        record: the engine.
        rows: logged values, one row per logging step.
        facts: the trainer's facts about the engine in the last attempt.
    """
    kept = list(rows)
    gap = {kind: found for kind in KINDS if (found := _summary(kind, kept))}
    write_text(directory / ROLLOUT_FILE, json.dumps({**asdict(record), "gap": gap, **facts}, indent=1) + "\n")


def _summary(kind: str, rows: list[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, column in (("mean", GAP), ("p99", GAP_P99), ("rounding", ROUNDING)):
        values = [row[f"{column}/{kind}"] for row in rows if row.get(f"{column}/{kind}") is not None]
        if values:
            found |= {name: float(f"{sum(values) / len(values):.4g}"), "num_steps": len(values)}
    return found
