"""What does a finished run write? The model in the start checkpoint's format, the proof of freezing, the metrics."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.adapters.opening import merge_adapter_of
from models.blocks import BLOCKS
from models.checkpoint import check_same_tensors, open_checkpoint, write_like
from tracking.processes import on_main_process, wait_for_all
from tracking.product import partial_directory, write_text
from tracking.records import Record, RecordLog
from tracking.tables import write_table
from train import FINAL_DIR
from train.freezing.adapters import adapted_modules, adapter_breaches
from train.freezing.elements import find_element_breaches, format_breaches
from train.freezing.float32 import trained_masters, with_masters
from train.freezing.freeze import (
    FreezeArguments,
    broken_tensors,
    compare_tensors,
    find_breaches,
    never_moved,
    summarise_changes,
)
from train.running.start import Start

if TYPE_CHECKING:
    from transformers import Trainer

ADAPTER_DIR = "adapter"
FREEZE_REPORT = "freeze_report.json"
NUM_NAMED = 3
"""Number of unchanged tensors printed; the report lists all."""


def saved_breaches(directory: Path, start: Start, digests: dict[str, str], *, lora: bool) -> list[str]:
    """Returns a saved checkpoint's violations of the plan: changed frozen tensors or elements, unplanned adapters."""
    if lora:
        return adapter_breaches(directory, start.plan)
    saved = open_checkpoint(directory)
    breaches = find_breaches(start.checkpoint, saved, digests)
    if start.mask is not None:
        breaches += format_breaches(find_element_breaches(start.checkpoint, saved, start.mask))
    return breaches


def write_final(
    trainer: "Trainer",
    start: Start,
    digests: dict[str, str],
    directory: Path,
    *,
    lora: bool,
    provenance: Callable[[Path], None] = lambda final: None,
) -> None:
    """Writes `final/`, and under LoRA `adapter/`, after checking the frozen tensors; collective.

    Args:
        provenance: adds files about the model's origin to `final/` before it is renamed.

    Raises:
        RuntimeError: if a frozen tensor changed; nothing is written.
    """
    raw = directory / f".partial-{FINAL_DIR}-raw"
    on_main_process(lambda: shutil.rmtree(raw, ignore_errors=True))
    trainer.save_model(str(raw))
    wait_for_all()
    masters = {} if lora else trained_masters(trainer, start.checkpoint)

    def write() -> None:
        breaches = saved_breaches(raw, start, digests, lora=lora)
        if breaches:
            raise RuntimeError(f"{len(breaches)} frozen tensors changed during training, the first is {breaches[0]}")
        trained = merge_adapter_of(raw, start.checkpoint) if lora else with_masters(open_checkpoint(raw), masters)
        check_same_tensors(start.checkpoint, trained, carried=False)
        for name in (FINAL_DIR, ADAPTER_DIR):
            shutil.rmtree(directory / name, ignore_errors=True)
        with partial_directory(directory / FINAL_DIR) as partial_final:
            write_like(partial_final, start=start.checkpoint, weights=trained)
            provenance(partial_final)
        if lora:
            raw.rename(directory / ADAPTER_DIR)
        else:
            shutil.rmtree(raw)

    on_main_process(write)


def write_metrics(directory: Path, log: RecordLog) -> None:
    """Writes `metrics.csv`: one row per step, with the values logged by training and by each validation."""
    import pandas as pd

    rows: dict[int, Record] = {}
    for record in log:
        rows.setdefault(record["step"], {}).update({name: value for name, value in record.items() if name != "key"})
    write_table(directory / "metrics.csv", pd.DataFrame(list(rows.values())))


def write_freeze_report(
    directory: Path, start: Start, freeze: FreezeArguments, proofs: Sequence[Record], *, lora: bool
) -> None:
    """Writes the proof of freezing, per checkpoint, block and tensor, and warns about unchanged trainable tensors."""
    final = open_checkpoint(directory / FINAL_DIR)
    changes = compare_tensors(start.checkpoint, final, start.plan)
    broken = broken_tensors(changes)
    if broken:
        raise RuntimeError(f"{directory / FINAL_DIR}: {len(broken)} frozen tensors changed, the first is {broken[0]}")
    elements = find_element_breaches(start.checkpoint, final, start.mask) if start.mask is not None else {}
    if elements:
        raise RuntimeError(f"{directory / FINAL_DIR}: {next(format_breaches(elements))}, in {len(elements)} tensors")
    still = never_moved(changes)
    saved = [proof for proof in proofs if "num_breaches" in proof]
    report: dict[str, Any] = {
        "partition": {block: list(start.plan.partition.layers(block)) for block in BLOCKS},
        "freeze": freeze.freeze,
        "train_only": freeze.train_only,
        "always_freeze": freeze.always_freeze,
        "elements": {**start.mask.as_row(), "num_breaches": 0} if start.mask is not None else None,
        "notes": start.plan.notes,
        "lora_modules": adapted_modules(start.plan) if lora else None,
        "checkpoints": [*(proof["key"] for proof in saved), FINAL_DIR],
        "num_frozen_tensors": len(start.plan.frozen),
        "num_breaches": 0,
        "engine": [proof for proof in proofs if "num_breaches" not in proof],
        "never_moved": still,
        "blocks": summarise_changes(changes),
        "tensors": [{**asdict(change), "changed_frac": change.changed_frac} for change in changes],
    }
    write_text(directory / FREEZE_REPORT, json.dumps(report, indent=1) + "\n")
    print(
        f"proof: {len(start.plan.frozen)} frozen tensors are bit-identical in {len(saved) + 1} checkpoints "
        f"({directory / FREEZE_REPORT})"
    )
    if start.mask is not None:
        row = start.mask.as_row()
        num_frozen = row["num_elements_in_optimizer"] - row["num_trained_elements"]
        print(
            f"proof: {num_frozen:,} frozen elements of the {row['num_tensors']} tensors that train are bit-identical "
            f"too; {row['num_trained_elements']:,} elements could train"
        )
    if still:
        first = ", ".join(still[:NUM_NAMED])
        print(
            f"WARNING: {len(still)} of {len(start.plan.trainable)} tensors free to change did not move in a single "
            f"element: {first}{', …' if len(still) > NUM_NAMED else ''}"
        )
