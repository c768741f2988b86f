"""Reports a run to Weights & Biases, with its files in the run directory.

`report_to: wandb` is implemented by TRL and Transformers; here it is adapted to a run directory. It is offline unless
WANDB_MODE says otherwise; `wandb sync OUTPUT/wandb/offline-run-*` uploads it later. A resumed run keeps the id of its
first attempt; `wandb sync --append` merges the attempts. W&B's environment variables, such as WANDB_PROJECT and
WANDB_DIR, are respected.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from tracking.command import is_main_process
from tracking.product import write_text
from tracking.tables import write_table
from train.freezing.freeze import FreezePlan, count_blocks

if TYPE_CHECKING:
    from pandas import DataFrame

PROJECT = "frankenstein"
ID_FILE = "wandb/run_id"
FREEZE_TABLE = "freeze_table.csv"


@contextmanager
def wandb_run(report_to: Sequence[str], directory: Path) -> Iterator[None]:
    """Makes Transformers' callback write its W&B run to the run directory, and finishes that run.

    Args:
        report_to: the trainer's loggers; nothing happens unless `wandb` is among them.
        directory: the run directory.
    """
    if "wandb" not in report_to or not is_main_process():
        yield
        return
    import wandb

    id_file = directory / ID_FILE
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(id_file, uuid.uuid4().hex)
    defaults = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(directory.resolve()),
        "WANDB_PROJECT": PROJECT,
        "WANDB_NAME": directory.resolve().name,
        "WANDB_RUN_ID": id_file.read_text(encoding="utf-8"),
        "WANDB_RESUME": "allow",
        "WANDB_SILENT": "true",
    }
    ours = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in ours})
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))
        wandb.teardown()  # `finish` alone (wandb 0.31) returns before the run's file is complete
        for name in ours:
            os.environ.pop(name, None)


def freeze_table(plan: FreezePlan) -> "DataFrame":
    """Returns tensors and parameters per block, trainable and total, as printed before the first step."""
    import pandas as pd

    return pd.DataFrame([{**asdict(count), "state": count.state} for count in count_blocks(plan)])


class FreezeTable(TrainerCallback):
    """Writes the freeze table to `freeze_table.csv` and, if enabled, to W&B."""

    def __init__(self, plan: FreezePlan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if not state.is_world_process_zero:
            return
        table = freeze_table(self._plan)
        write_table(self._directory / FREEZE_TABLE, table)
        if "wandb" in args.report_to:
            import wandb

            assert wandb.run is not None, "Transformers' callback starts the run before this one is called"
            wandb.run.log({"freeze_table": wandb.Table(dataframe=table)})
