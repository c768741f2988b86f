"""Element masks: which elements train, that no other one moves in any engine, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.freezing import MODES, prepare
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from models.loading import load_model
from tracking.command import REPOSITORY_ROOT
from train.freezing import elements as module
from train.freezing.elements import (
    ELEMENTS_FILE,
    ElementArguments,
    Elements,
    describe_elements,
    draw_mask,
    elements_settings,
    find_elements,
    mask_gradients,
    moved_outside,
    narrow_plan,
    read_elements,
    write_elements,
)
from train.freezing.freeze import FreezeArguments, FreezePlan, apply_freeze, plan_freeze

SHARE = 0.3
UNCHANGED = "layers.1.mlp.up_proj.weight"
"""End of the name of a tensor in which the pair does not differ."""


def changed_copy(start: Path, directory: Path, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a copy in which a share of each tensor's elements differs; returns where, by name on disk."""
    shutil.copytree(start, directory)
    tensors = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    where = {}
    for name, tensor in tensors.items():
        chosen = torch.rand(tensor.shape, generator=generator) < (0 if name.endswith(UNCHANGED) else SHARE)
        tensors[name] = torch.where(chosen, tensor + tensor.abs() + 1, tensor).to(tensor.dtype)
        where[name] = chosen.numpy()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return where


def by_parameter(checkpoint: Path, where: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: where[stored.name_on_disk] for name, stored in open_checkpoint(checkpoint).tensors.items()}


def plan_of(checkpoint: Path, *freeze: str) -> FreezePlan:
    return plan_freeze(layout_of(checkpoint), FreezeArguments(freeze=list(freeze)))


@pytest.fixture(scope="module")
def pair(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    end = tmp_path_factory.mktemp("pair") / "end"
    where = changed_copy(pocket_checkpoint, end)
    return pocket_checkpoint, end, by_parameter(pocket_checkpoint, where)


def masks_of(pair: tuple[Path, Path, Any], *freeze: str, **changes: Any) -> tuple[Elements, FreezePlan]:
    start, end, _ = pair
    plan = plan_of(start, *freeze)
    arguments = ElementArguments(train_elements=[str(start), str(end)], **changes)
    return find_elements(arguments, open_checkpoint(start), plan), plan


def test_masks_are_where_the_pair_differs(pair: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    elements, plan = masks_of(pair, "late", "vision")
    differing = {name: pair[2][name] for name in plan.trainable if pair[2][name].any()}
    assert set(elements.masks) == set(differing) < set(plan.trainable)
    for name, where in differing.items():
        np.testing.assert_array_equal(elements.mask(name), where.ravel())
    assert elements.num_training() == sum(where.sum() for where in differing.values())
    narrowed = narrow_plan(plan, list(elements.masks), "a note")
    assert {name for name in plan.trainable if name.endswith(UNCHANGED)} == set(plan.trainable) - set(
        narrowed.trainable
    )
    assert narrowed.notes[-1] == "a note" and len(narrowed.frozen) == len(plan.frozen) + 1
    said = describe_elements(elements, plan, open_checkpoint(pair[0]))
    assert f"{elements.num_training():,} of {sum(elements.sizes.values()):,} elements" in said
    assert "1 tensors have none and are frozen" in said and "not the start" not in said


def test_a_random_mask_has_the_same_size_per_tensor_and_other_places(pair: tuple[Path, Path, Any]) -> None:
    changed, plan = masks_of(pair)
    drawn, again, other = (masks_of(pair, random_elements=seed)[0] for seed in (1, 1, 2))
    assert drawn.sha256() == again.sha256() != other.sha256() != changed.sha256()
    for name in changed.masks:
        assert drawn.mask(name).sum() == changed.mask(name).sum()
    assert "in number, drawn with seed 1" in describe_elements(drawn, plan, open_checkpoint(pair[0]))


@pytest.mark.parametrize("num_training", [0, 1, 37, 100])
def test_a_drawn_mask_is_exact_and_even_over_its_chunks(monkeypatch: pytest.MonkeyPatch, num_training: int) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    rng = np.random.default_rng(0)
    masks = np.stack([draw_mask(num_training, 100, rng) for _ in range(400)])
    assert (masks.sum(axis=1) == num_training).all()
    share = num_training / 100
    assert abs(masks.mean(axis=0) - share).max() <= 5 * (share * (1 - share) / 400) ** 0.5


def test_rounding_leaves_out_what_moved_least(pocket_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(pocket_checkpoint, tmp_path / "end")
    tensors = load_file(tmp_path / "end" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name] = tensors[name] * (1 + 1e-6)
    tensors[name][0] *= 2
    save_file(tensors, tmp_path / "end" / "model.safetensors", {"format": "pt"})
    stored, _ = masks_of((pocket_checkpoint, tmp_path / "end", None))
    rounded, _ = masks_of((pocket_checkpoint, tmp_path / "end", None), elements_dtype="bfloat16")
    (own,) = rounded.masks
    assert rounded.mask(own).sum() < 1.1 * tensors[name].shape[1] < 0.5 * stored.mask(own).sum()


def test_a_step_moves_only_elements_of_the_masks(pair: tuple[Path, Path, Any]) -> None:
    elements, plan = masks_of(pair, "late")
    plan = narrow_plan(plan, list(elements.masks), "")
    model = load_model(pair[0], dtype="float32")
    apply_freeze(model, plan)
    mask_gradients(model, elements)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0)
    for _ in range(2):
        loss = model(input_ids=torch.arange(4, 24)[None], labels=torch.arange(4, 24)[None]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    reached = 0
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() != before[name]).numpy().ravel()
        outside = ~elements.mask(name) if name in elements.masks else np.ones(moved.size, bool)
        assert not moved[outside].any(), name
        reached += int(moved.sum())
    assert reached > 0.5 * sum(elements.mask(name).sum() for name in elements.masks if "visual" not in name)


def test_an_element_that_moved_outside_is_found(pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    elements, _ = masks_of(pair, random_elements=0)
    start = open_checkpoint(pair[0])
    assert not list(moved_outside(start, start, elements))
    shutil.copytree(pair[0], tmp_path / "moved")
    tensors = load_file(tmp_path / "moved" / "model.safetensors")
    name = next(name for name in elements.masks if name.endswith("layers.2.mlp.up_proj.weight"))
    place = int(np.flatnonzero(~elements.mask(name))[5])
    tensors[start.tensors[name].name_on_disk].view(-1)[place] += 1
    save_file(tensors, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    assert list(moved_outside(start, open_checkpoint(tmp_path / "moved"), elements)) == [name]


def test_masks_are_read_as_they_were_written_and_a_damaged_file_is_refused(
    pair: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    elements, plan = masks_of(pair, "late")
    file = tmp_path / ELEMENTS_FILE
    write_elements(file, elements)
    sizes = {name: plan.layout.parameters[name].num_elements for name in plan.trainable}
    assert read_elements(file, sizes, elements.source).sha256() == elements.sha256()
    with pytest.raises(ValueError, match="expected a mask of a tensor of the start"):
        read_elements(file, {name: size + 8 for name, size in sizes.items()}, elements.source)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_elements(file, sizes, elements.source)


def test_mistakes_are_named(pair: tuple[Path, Path, Any], qwen2_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="expected two checkpoints, START END"):
        ElementArguments(train_elements=["a"])
    with pytest.raises(ValueError, match="random_elements is given without train_elements"):
        ElementArguments(random_elements=1)
    with pytest.raises(ValueError, match="elements_dtype is 'fp8'; expected bfloat16 or float16"):
        ElementArguments(train_elements=["a", "b"], elements_dtype="fp8")
    both = ElementArguments(train_elements=[str(pair[0]), str(pair[1])])
    with pytest.raises(ValueError, match=r"weight_decay 0\.1, which moves every element; set weight_decay: 0"):
        both.check_training(SimpleNamespace(weight_decay=0.1), lora=False)
    with pytest.raises(ValueError, match="with LoRA"):
        both.check_training(SimpleNamespace(weight_decay=0.0), lora=True)
    assert elements_settings(ElementArguments()) == {}
    with pytest.raises(ValueError, match="are bit-identical in everything that would train"):
        masks_of((pair[0], pair[0], None))
    plan = plan_of(pair[0])
    foreign = replace(both, train_elements=[str(qwen2_checkpoint), str(qwen2_checkpoint)])
    with pytest.raises(ValueError, match=r"expected \[.*\], as in"):
        find_elements(foreign, open_checkpoint(pair[0]), plan)


ENGINES = {"one": ("one process",), "two": ("DDP", "ZeRO-2", "ZeRO-3")}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("elements")
    prepare(directory)
    for start in ("start", "start-bf16"):
        changed_copy(directory / start, directory / f"{start}-end")
    return directory


def words_of(work: Path, mode: str, command: str, *, bf16: bool) -> list[str]:
    start = work / ("start-bf16" if bf16 else "start")
    values: dict[str, Any] = {
        "model_name_or_path": start, "dtype": "bfloat16" if bf16 else "float32", "bf16": bf16,
        "prompts": work / "prompts", "split": "rl", "output_dir": work / "runs" / f"{mode}-{command}", "max_steps": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 1,
        "report_to": "none", "use_cpu": True, "gradient_checkpointing": False, "ddp_timeout": 300,
    }  # fmt: skip
    if command == "grpo":
        values |= {"num_generations": 4, "max_completion_length": 8, "beta": 0.0, "temperature": 1.0}
    if MODES[mode]:
        values["deepspeed"] = work / f"{mode}.json"
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*words, "--freeze", "late", "--train_elements", str(start), f"{start}-end"]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
@pytest.mark.parametrize("launch", list(ENGINES))
def test_elements_outside_the_masks_are_bit_identical_in_every_engine(work: Path, launch: str) -> None:
    runs = [
        (mode, command, mode.startswith("ZeRO"))
        for mode in ENGINES[launch]
        for command in (("sft", "grpo") if mode in ("one process", "ZeRO-3") else ("sft",))
    ]
    cases = [[command, words_of(work, mode, command, bf16=bf16)] for mode, command, bf16 in runs]
    (work / f"{launch}.json").write_text(json.dumps(cases))
    starter = [sys.executable]
    if launch == "two":
        starter += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*starter, str(Path(__file__).with_name("elements_worker.py")), str(work), launch],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY_ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for mode, command, bf16 in runs:
        start = open_checkpoint(work / ("start-bf16" if bf16 else "start"))
        end = open_checkpoint(work / ("start-bf16-end" if bf16 else "start-end"))
        directory = work / "runs" / f"{mode}-{command}"
        plan = plan_of(start.directory, "late")
        for saved in (*(directory / "checkpoints").glob("checkpoint-*"), directory / "final"):
            found = open_checkpoint(saved)
            moved = num_free = 0
            for name in start.tensors:
                before, after, aim = (one.tensor(name).float().numpy() for one in (start, found, end))
                free = (before != aim) & (name in plan.trainable)
                assert not (before != after)[~free].any(), (mode, saved.name, name)
                moved, num_free = moved + int((before != after).sum()), num_free + int(free.sum())
            assert moved > 0.2 * num_free, (mode, saved.name)
        report = json.loads((directory / "freeze_report.json").read_text())
        assert report["elements"]["num_training"] == num_free and report["num_breaches"] == 0
