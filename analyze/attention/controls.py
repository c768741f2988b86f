"""Is the measurement of attention correct? The controls of each run of `analyze.attention`, with their limits.

sums      the masses of every measured query sum to one: largest deviation
repeat    a model against itself: largest difference between two measurements of the same replies
logits    measuring does not change the model: largest difference of the logits to those of plain SDPA
output    the weights are SDPA's: largest relative difference over layers of the output rebuilt from them
tokens    teacher-forced, all models get the same tokens: number of prompts that differ from the first model's
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.attention.records import Label
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from analyze.attention.replies import PromptedReply

TEACHER_FORCED = "teacher-forced"
"""The mode in which all models get the same replies."""
NUM_CONTROL_REPLIES = 4
"""Number of replies per model for `repeat`, `logits` and `output`."""
NUM_LOGITS = 64
"""Number of positions per reply whose logits are compared."""
WAYS_OUT = {
    "sums": "a token belongs to no segment, a fault of this program",
    "repeat": "this device computes the same forward pass differently each time; switch on deterministic kernels",
    "logits": "this device computes the same forward pass differently each time; switch on deterministic kernels",
    "output": "attention here is not what was measured, a fault of this program or of this version of Transformers",
    "tokens": "chat template, tokenizer or image sizes differ; compare models that share them, as in one recipe",
}
SUM_LIMIT = 1e-4
OUTPUT_LIMITS = {"float64": 1e-4, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
"""SDPA rounds its weights and its output to the model's dtype; the measured weights are fp32."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """The controls' values on some replies of one model."""

    num_replies: int
    dtype: str
    repeat: float
    logits: float
    output: float


def check_model(model: "PreTrainedModel", rows: Sequence["PromptedReply"], *, pad_id: int, top_tokens: int) -> Control:
    """Measures some replies twice, and runs the model on them once without measurement."""
    import torch

    from analyze.attention.mass import AttentionMass, accumulating
    from analyze.attention.replies import make_inputs

    inputs, segments, weights = make_inputs(rows, model, pad_id=pad_id)
    first_reply = min(len(row.input_ids) - row.num_reply_tokens for row in rows)
    kept = torch.linspace(first_reply, segments.shape[1] - 1, NUM_LOGITS, device=segments.device).long().unique()
    masses, logits = [], []
    output_error = 0.0
    with torch.inference_mode():
        for _ in range(2):
            mass = AttentionMass(segments, weights, top_tokens=top_tokens, rebuild_output=True)
            with accumulating(model, mass):
                logits.append(model(**inputs, use_cache=False, logits_to_keep=kept).logits)
            masses.append(mass.result())
            output_error = max(output_error, mass.output_error)
        plain = model(**inputs, use_cache=False, logits_to_keep=kept).logits
    return Control(
        num_replies=len(rows),
        dtype=str(model.dtype).removeprefix("torch."),
        repeat=float((masses[0] - masses[1]).nan_to_num(0).abs().max()),
        logits=max(float((one - plain).abs().max()) for one in logits),
        output=output_error,
    )


def control_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns one row per model and control: worst value, limit, number of replies, and `passed`."""
    import pandas as pd

    by_model: dict[Label, list[Record]] = {}
    for record in records:
        by_model.setdefault(Label(record["model"], record["seed"]), []).append(record)
    tokens: dict[tuple[str, str], str] = {}
    rows: list[dict[str, Any]] = []
    for label, own in by_model.items():
        measured = [record for record in own if "sum_error" in record]
        forced = [record for record in measured if record["mode"] == TEACHER_FORCED]
        found = [record["control"] for record in own if "control" in record]
        checks: list[tuple[str, int, list[float], float]] = [
            ("sums", len(measured), [record["sum_error"] for record in measured], SUM_LIMIT),
            *(
                (name, sum(one["num_replies"] for one in found), [one[name] for one in found], limit)
                for name, limit in (
                    ("repeat", 0.0), ("logits", 0.0), ("output", OUTPUT_LIMITS[found[0]["dtype"]] if found else 0.0)
                )
            ),
            ("tokens", len(forced), [sum(_first_tokens(tokens, r) != r["tokens_sha256"] for r in forced)], 0.0),
        ]  # fmt: skip
        for control, n, values, limit in checks:
            if n:
                value = max(values)
                row = {"model": label.name, "seed": label.seed, "control": control, "n": n, "value": value}
                rows.append(row | {"limit": limit, "passed": bool(value <= limit)})
    return pd.DataFrame(rows, columns=["model", "seed", "control", "n", "value", "limit", "passed"])


def _first_tokens(tokens: dict[tuple[str, str], str], record: Record) -> str:
    return tokens.setdefault((record["task"], record["id"]), record["tokens_sha256"])


def check_controls(controls: "pd.DataFrame", output_dir: Path) -> None:
    """Raises if a control failed, naming the worst."""
    failed = controls[~controls["passed"]]
    if len(failed):
        first = failed.iloc[0]
        label = Label(first["model"], first["seed"])
        raise RuntimeError(
            f"control {first['control']!r} failed for {label}: found {first['value']:g}, expected at most "
            f"{first['limit']:g} ({len(failed)} of {len(controls)} controls failed); {WAYS_OUT[first['control']]}; "
            f"see {output_dir / 'controls.csv'}"
        )
