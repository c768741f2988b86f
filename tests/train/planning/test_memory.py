"""Planned memory equals the bytes of live runs, on every rank, including padding."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import kept_float32, open_checkpoint
from models.layout import Layout, layout_of
from models.pocket import PocketShape, write_pocket_checkpoint
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, FreezePlan, plan_freeze
from train.planning.disk import state_bytes, weights_bytes
from train.planning.memory import (
    Engine,
    Tensor,
    decays,
    elements_in_partition,
    groups,
    held_items,
    partition_elements,
    sub_groups,
    tensors_in_memory,
)
from train.planning.recipe import deepspeed_engine

WIDTHS = {"float32": 4, "bfloat16": 2}


def tensor(name: str, num_elements: int, *, trains: bool = True, decays: bool = True) -> Tensor:
    return Tensor(name=name, num_elements=num_elements, num_bytes=2, trains=trains, decays=decays)


def test_parts_are_padded_to_a_multiple_of_two_elements_a_process() -> None:
    assert partition_elements([7, 3], 2) == 6  # 10 -> 12
    assert partition_elements([8], 2) == 4
    assert partition_elements([1], 4) == 2


def test_a_tensor_cut_between_processes_counts_whole_for_both() -> None:
    assert elements_in_partition([4, 6, 2], 6, 0) == [4, 6]
    assert elements_in_partition([4, 6, 2], 6, 1) == [6, 2]


def test_a_group_without_a_tensor_is_none() -> None:
    engine = Engine(num_processes=2, stage=2)
    assert [len(group) for group in groups([tensor("a", 4), tensor("b", 4, trains=False)], engine)] == [1]
    assert [len(g) for g in groups([tensor("a", 4), tensor("n", 4, decays=False)], engine)] == [1, 1]


def test_zero_3_steps_large_groups_in_several_flat_tensors() -> None:
    tensors = [tensor(str(number), 10) for number in range(5)]
    assert sub_groups(tensors, Engine(num_processes=2, stage=3, sub_group_elements=10)) == [[10, 10, 5]]
    assert sub_groups(tensors, Engine(num_processes=2, stage=3)) == [[25]]


def test_weight_decay_is_parted_as_trainer_parts_it(
    pocket_checkpoint: Path, qwen3_vl_checkpoint: Path, qwen3_5_checkpoint: Path, internvl_checkpoint: Path
) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Trainer

    from models.layout import layout_from_config
    from models.loading import load_model

    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 48, "vocab_size": 64, "rope_parameters": {"mrope_section": [2, 3, 3]}}  # fmt: skip
    config = Qwen2VLConfig(
        text_config=small, vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    )
    checkpoints = (pocket_checkpoint, qwen3_vl_checkpoint, qwen3_5_checkpoint, internvl_checkpoint)
    models = [*map(load_model, checkpoints), Qwen2VLForConditionalGeneration(config)]
    for model in models:
        layout = layout_from_config(model.config.to_dict())
        expected = set(Trainer.get_decay_parameter_names(None, model)) & set(layout.parameters)
        assert {name for name in layout.parameters if decays(name, layout)} == expected, model.config.model_type


@pytest.mark.parametrize("lora_rank", [0, 3])
@pytest.mark.parametrize("frozen", [["mid"], ["early", "embed", "vision"]])
@pytest.mark.cases_slow
def test_one_process_holds_what_the_plan_says(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path, frozen: list[str], lora_rank: int
) -> None:
    """A plain Trainer with AdamW, counted before and after its optimizer step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from models.loading import load_model
    from train.freezing.freeze import apply_freeze

    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=frozen))
    model: Any = load_model(pocket_checkpoint)
    if lora_rank:
        plan, model = with_adapters(model, plan, frozen, lora_rank)
    else:
        apply_freeze(model, plan)
    counted: dict[str, int] = {}

    def bytes_of(tensors: Any) -> int:
        return sum(each.numel() * each.element_size() for each in tensors)

    class Count(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            counted["gradients"] = bytes_of(p.grad for p in model.parameters() if p.grad is not None)

        def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
            states = [v for state in trainer.optimizer.state.values() for v in state.values()]
            counted["optimizer state"] = bytes_of(states)
            counted["weights"] = bytes_of(model.parameters())

    inputs = picture_inputs(pocket_checkpoint)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_steps=2, save_strategy="steps",
        disable_tqdm=True, per_device_train_batch_size=1, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=[inputs] * 2, data_collator=lambda rows: rows[0], callbacks=[Count()]
    )
    trainer.train()
    tensors = tensors_in_memory(plan, weight_bytes=4, adapter_rank=lora_rank)
    assert {item.name: item.num_bytes for item in held_items(tensors, Engine(), 0)} == counted
    files = [file for file in (tmp_path / "checkpoint-2").iterdir() if file.suffix in (".safetensors", ".pt")]
    saved = weights_bytes(tensors, Engine(), head_elements=0, adapters=lora_rank > 0)
    saved += state_bytes(tensors, Engine(), adapters=lora_rank > 0)
    assert sum(file.stat().st_size for file in files) == pytest.approx(saved, rel=0.01, abs=60_000)


def picture_inputs(checkpoint: Path) -> dict[str, Any]:
    """A prompt with a picture, so that every trainable tensor gets a gradient."""
    from PIL import Image

    from models.loading import load_processor

    text = "<|vision_start|><|image_pad|><|vision_end|>How many objects are there ?"
    picture = Image.new("RGB", (56, 56), (200, 30, 30))
    inputs = dict(load_processor(checkpoint)(text=[text], images=[[picture]], return_tensors="pt"))
    return {**inputs, "labels": inputs["input_ids"]}


def with_adapters(model: Any, plan: FreezePlan, frozen: list[str], rank: int) -> tuple[FreezePlan, Any]:
    from trl import ModelConfig

    from train.freezing.adapters import add_adapters, plan_adapters

    config = ModelConfig(use_peft=True, lora_r=rank, lora_dropout=0.0)
    adapted = plan_adapters(plan, FreezeArguments(freeze=frozen), config)
    return adapted, add_adapters(model, adapted, config, autocast_adapter_dtype=True)


def engine_case(
    name: str, stage: int, freeze: list[str], *, dtype: str = "bfloat16", lora_rank: int = 0, save: bool = False,
    num_passes: int = 1, zero: dict[str, Any] | None = None, family: str = "pocket", **further: Any,
) -> dict[str, Any]:  # fmt: skip
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_passes,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 20_000, **(zero or {})},
        **further,
    }
    return {
        "name": name, "deepspeed": config, "freeze": freeze, "dtype": dtype, "lora_rank": lora_rank, "save": save,
        "family": family,
    }  # fmt: skip


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OWN_OPTIMIZER = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}}
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
ENGINES = [
    engine_case("zero1", 1, ["early", "embed"]),
    engine_case("zero1 fp32", 1, ["late"], dtype="float32", **OWN_OPTIMIZER),
    engine_case("zero2", 2, [], save=True, num_passes=2),
    engine_case("zero2 fp32 sums", 2, ["mid"], num_passes=2, **FP32_SUMS),
    engine_case("zero2 lora", 2, ["mid"], lora_rank=3),
    engine_case("zero2 offload", 2, ["mid"], zero=OFFLOAD, zero_force_ds_cpu_optimizer=False),
    engine_case("zero3", 3, ["mid"], zero={"stage3_param_persistence_threshold": 0}, save=True),
    engine_case("zero3 whole", 3, ["late", "vision"], zero={"stage3_param_persistence_threshold": 130}, **FP32_SUMS),
    engine_case(
        "zero3 offload", 3, ["mid"], zero={**OFFLOAD, "sub_group_size": 40_000}, zero_force_ds_cpu_optimizer=False,
        **FP32_SUMS,
    ),
    engine_case("zero3 fp32 lora", 3, ["early"], dtype="float32", lora_rank=3),
    engine_case("zero2 internvl", 2, ["mid"], family="internvl"),
    engine_case(
        "zero3 internvl", 3, ["early", "vision"], zero={"stage3_param_persistence_threshold": 130}, family="internvl"
    ),
    engine_case("zero2 mixed", 2, ["early"], family="mixed"),
    engine_case("zero3 mixed", 3, ["early"], zero={"stage3_param_persistence_threshold": 8}, family="mixed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def counted_engines(
    warm_python: Path, internvl_checkpoint: Path, mixed_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], list[dict[str, dict[str, int]]]]:
    """What two ranks of every engine held: one launch for all; the shape has odd sizes, so that there is padding."""
    directory = tmp_path_factory.mktemp("engines")
    checkpoint = directory / "checkpoint"
    shape = PocketShape(num_layers=3, hidden_size=64, num_heads=4, num_kv_heads=2, mlp_size=96, num_vision_blocks=1,
                        vision_hidden_size=32, vision_mlp_size=63)  # fmt: skip
    write_pocket_checkpoint(checkpoint, shape=shape, seed=0)
    cases = directory / "cases.json"
    checkpoints = {"pocket": checkpoint, "internvl": internvl_checkpoint, "mixed": mixed_checkpoint}
    cases.write_text(json.dumps([{**case, "checkpoint": str(checkpoints[case["family"]])} for case in ENGINES]))
    worker = Path(__file__).with_name("count_engine_bytes.py")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)}
    command = [str(warm_python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(worker), str(cases), str(directory)]  # fmt: skip
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        try:
            _, errors = run.communicate(timeout=400)
        finally:
            run.terminate()  # torchrun passes it on
    assert run.returncode == 0, errors[-3000:]
    return checkpoints, [json.loads((directory / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ENGINES, ids=lambda case: case["name"])
def test_each_rank_of_an_engine_holds_what_the_plan_says(
    counted_engines: tuple[dict[str, Path], list[dict[str, dict[str, int]]]], case: dict[str, Any]
) -> None:
    checkpoints, counted = counted_engines
    tensors, engine = planned_engine(checkpoints[case["family"]], case)
    for rank, of_rank in enumerate(counted):
        items = held_items(tensors, engine, rank)
        expected = dict.fromkeys((item.name for item in items), 0)
        for item in items:
            expected[item.name] += item.num_bytes
        found = {name: num_bytes for name, num_bytes in of_rank[case["name"]].items() if name != "saved"}
        found = {name: num_bytes for name, num_bytes in found.items() if num_bytes or name in expected}
        assert found == expected, f"rank {rank}"


def planned_engine(checkpoint: Path, case: dict[str, Any]) -> tuple[list[Tensor], Engine]:
    from trl import ModelConfig

    from train.freezing.adapters import plan_adapters

    bf16 = case["deepspeed"]["bf16"]["enabled"]
    passes = case["deepspeed"]["gradient_accumulation_steps"]
    engine = deepspeed_engine(case["deepspeed"], num_processes=2, bf16=bf16, hidden_size=64, accumulates=passes > 1)
    freeze = FreezeArguments(freeze=case["freeze"])
    plan = plan_freeze(layout_of(checkpoint), freeze)
    if case["lora_rank"]:
        plan = plan_adapters(plan, freeze, ModelConfig(use_peft=True, lora_r=case["lora_rank"]))
    width = WIDTHS[case["dtype"]]
    tensors = tensors_in_memory(
        plan,
        weight_bytes=width,
        adapter_rank=case["lora_rank"],
        adapter_bytes=width,
        float32=kept_float32(open_checkpoint(checkpoint)),
    )
    return tensors, engine


@pytest.mark.slow
def test_an_engine_saves_what_the_plan_says(
    counted_engines: tuple[dict[str, Path], list[dict[str, dict[str, int]]]],
) -> None:
    checkpoints, counted = counted_engines
    for case in ENGINES:
        if case["save"]:
            tensors, engine = planned_engine(checkpoints[case["family"]], case)
            saved = counted[0][case["name"]]["saved"]
            assert saved == pytest.approx(state_bytes(tensors, engine, adapters=False), abs=80_000), case["name"]
