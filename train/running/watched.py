"""Where do measures enter the trainer? Between Transformers' Trainer and TRL's: list it after TRL's among the bases.

    class WatchedSFTTrainer(SFTTrainer, WatchedTrainer): ...

There it sees what TRL logs just before every logger does, so that W&B and `metrics.csv` hold the same numbers.
"""

from typing import Any

import torch
from transformers import Trainer

from train.running.telemetry import Telemetry


class WatchedTrainer(Trainer):
    """Trainer with telemetry per block, and with evaluations that are named apart and leave training alone."""

    _telemetry: Telemetry | None = None
    _evaluating: tuple[str, int] | None = None
    """Prefix of the metrics, and number of rows, of the evaluation in progress."""

    def watch(self, telemetry: Telemetry) -> None:
        """Measures with `telemetry` from now on."""
        self._telemetry = telemetry
        self.add_callback(telemetry)

    def rollout_facts(self) -> dict[str, Any]:
        """Returns what is known of the engine that wrote the replies; nothing for a trainer that has none."""
        return {}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        telemetry = self._telemetry
        # The last backward pass of a step is the one that averages gradients over processes; clipping comes after.
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
        """Evaluates with random numbers of its own, the same every time: training goes on as without it."""
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
        if self._telemetry is not None and "loss" in logs:  # a row of training, not of evaluation or of the end
            logs.update(self._telemetry.take())
        if self._evaluating is not None:
            prefix, num_rows = self._evaluating
            # TRL 1.16 gives its own metrics the same names, eval_…, for each of several evaluation sets.
            for name in [name for name in logs if name.startswith("eval_") and not name.startswith(f"{prefix}_")]:
                logs[f"{prefix}_{name.removeprefix('eval_')}"] = logs.pop(name)
            logs[f"{prefix}_num_prompts"] = num_rows
        super().log(logs, start_time)
