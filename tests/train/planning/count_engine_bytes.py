"""Counts what live DeepSpeed engines hold: one process of two, started by test_memory.py, several engines in turn.

    torchrun --nproc_per_node 2 count_engine_bytes.py CASES.json OUTPUT_DIR

Knows nothing of the plan's formulas: it takes tensors from the engines (DeepSpeed 0.19.8) and adds up their storages.
"""

import gc
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.command import quiet_libraries

quiet_libraries()

import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import Trainer  # noqa: E402

from models.checkpoint import open_checkpoint  # noqa: E402
from models.layout import layout_of  # noqa: E402
from models.loading import load_model, load_processor, put_back_float32  # noqa: E402
from train.freezing.adapters import add_adapters, plan_adapters  # noqa: E402
from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze  # noqa: E402
from train.running.collectives import skip_shared_memory  # noqa: E402


@dataclass
class Lora:
    """The fields of TRL's ModelConfig that adapters are made from."""

    lora_r: int
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    lora_target_modules: None = None
    use_rslora: bool = False
    use_dora: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False


def storages(tensors: Iterable[torch.Tensor | None]) -> int:
    """Returns the bytes behind the tensors, each storage once."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(held.values())


def build_engine(case: dict[str, Any], checkpoint: Path) -> Any:
    model: Any = load_model(checkpoint, dtype=getattr(torch, case["dtype"]))
    freeze = FreezeArguments(freeze=case["freeze"])
    plan = plan_freeze(layout_of(checkpoint), freeze)
    if case["lora_rank"]:
        lora: Any = Lora(lora_r=case["lora_rank"])
        stage = case["deepspeed"]["zero_optimization"]["stage"]
        model = add_adapters(model, plan_adapters(plan, freeze, lora), lora, autocast_adapter_dtype=stage != 3)
    else:
        apply_freeze(model, plan)
    if "optimizer" in case["deepspeed"]:
        training = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return deepspeed.initialize(model=model, model_parameters=training, config=case["deepspeed"])[0]
    decay = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [p for n, p in model.named_parameters() if p.requires_grad and (n in decay) == decays]}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-4, fused=True)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=case["deepspeed"])[0]


def count_held(engine: Any) -> dict[str, int]:
    """Returns the bytes between the last backward pass of a step and its optimizer step."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        flat = optimizer.fp32_partitioned_groups_flat
        counted = {
            "weights": storages(p.ds_tensor for p in parameters),
            "weights kept whole": storages(p.data for p in parameters),
            "gradients": storages([optimizer.grad_partitions_flat_buffer]),
            "gradients in fp32": storages(t.grad for t in flat),
        }
    else:
        flat = optimizer.single_partition_of_fp32_groups
        reduced = [g for group in optimizer.averaged_gradients.values() if group is not None for g in group]
        counted = {
            "weights": storages(p.data for p in parameters),
            "gradients": storages([*reduced, *(t.grad for t in flat)]),
        }
    states = [v for state in optimizer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return {**counted, "master weights": storages(flat), "optimizer state": storages(states)}


def run_case(case: dict[str, Any], checkpoint: Path, inputs: dict[str, torch.Tensor], save_dir: Path) -> dict[str, int]:
    engine = build_engine(case, checkpoint)
    put_back_float32(engine.module, open_checkpoint(checkpoint), chosen=lambda parameter: not parameter.requires_grad)
    num_passes = case["deepspeed"]["gradient_accumulation_steps"]
    for _ in range(2 * num_passes):  # the state is there from the second step on
        loss = engine(**inputs, labels=inputs["input_ids"]).loss
        engine.backward(loss)
        counted = count_held(engine)
        engine.step()
    if case["save"]:
        engine.save_checkpoint(str(save_dir / case["name"]), tag="step")
        dist.barrier()
        saved = (save_dir / case["name"] / "step").iterdir()
        counted["saved"] = sum(file.stat().st_size for file in saved)
    engine.destroy()
    return counted


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    output_dir = Path(sys.argv[2])
    skip_shared_memory()
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    gc.freeze()  # the collection after each case leaves the libraries out
    counted = {}
    for case in cases:
        checkpoint = Path(case["checkpoint"])
        processor: Any = load_processor(checkpoint)
        content = [{"type": "image"}, {"type": "text", "text": "How many objects are there ?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        inputs = processor(text=[text], images=[[Image.new("RGB", (56, 56), (200, 30, 30))]], return_tensors="pt")
        counted[case["name"]] = run_case(case, checkpoint, dict(inputs), output_dir)
        gc.collect()
    (output_dir / f"rank{dist.get_rank()}.json").write_text(json.dumps(counted))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
