"""Adds telemetry to the trainer, between Transformers' Trainer and TRL's: list it after TRL's among the base classes.

    class WatchedSFTTrainer(SFTTrainer, WatchedTrainer): ...

In this position it processes TRL's logs just before all loggers, so W&B and `metrics.csv` have the same numbers.
"""

from typing import Any

import torch
from transformers import Trainer

from train.running.telemetry import Telemetry


class WatchedTrainer(Trainer):
    """Trainer with telemetry per block, and with separately named evaluations that do not affect training."""

    _telemetry: Telemetry | None = None
    _evaluating: tuple[str, int] | None = None
    """Prefix of the metrics, and number of rows, of the current evaluation."""

    def watch(self, telemetry: Telemetry) -> None:
        """Starts measuring with `telemetry`."""
        self._telemetry = telemetry
        self.add_callback(telemetry)

    def rollout_facts(self) -> dict[str, Any]:
        """Returns facts about the rollout engine; empty for a trainer without one."""
        return {}

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Does not call a tied head missing, as Transformers 5.23 does when it resumes from a checkpoint."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        telemetry = self._telemetry
        # The last backward pass of a step averages gradients over processes; clipping comes after it.
        due = telemetry is not None and telemetry.due and self.accelerator.sync_gradients
        if telemetry is None or not due:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        elif self.is_deepspeed_enabled:
            with telemetry.around_engine_step(model):
                loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
            telemetry.measure_gradients()
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates with separate, fixed random states, so that training is not affected."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        outer, self._evaluating = self._evaluating, (metric_key_prefix, len(chosen))
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.args.seed + self.args.process_index)
                metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluating = outer
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._telemetry is not None and "loss" in logs:  # a training row, not an evaluation or the final summary
            logs.update(self._telemetry.take())
        if self._evaluating is not None:
            prefix, num_rows = self._evaluating
            # TRL 1.16 gives its own metrics the same names, eval_…, for each of several evaluation sets.
            for name in [name for name in logs if name.startswith("eval_") and not name.startswith(f"{prefix}_")]:
                logs[f"{prefix}_{name.removeprefix('eval_')}"] = logs.pop(name)
            logs[f"{prefix}_num_prompts"] = num_rows
        super().log(logs, start_time)
