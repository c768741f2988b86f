"""InternVL under ZeRO-3: shared prompts end as plain TRL does, with pictures of one and of several tiles.

The start has no flag about its head, as the published checkpoints; its head is its own and stays so.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.freezing import deepspeed_settings
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from models.checkpoint import Checkpoint, open_checkpoint
from models.layout import layout_of
from tests.families_page import ENGINES, expect_engines
from tests.train.sharing.test_engines import REWARD, SETTINGS, TOLERANCE, launch
from train.freezing.freeze import FreezeArguments, plan_freeze

SIZES = [(28, 28), (56, 28), (40, 100), (60, 60)]
"""Pictures of 1, 3, 4 and 5 tiles."""
JOBS = {"plain": "false", "shared": "true"}


def write_mixed_prompts(directory: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    prompts = []
    for number, (width, height) in enumerate(SIZES * 2):
        pixels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
        (directory / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(directory / "images" / f"{number}.png")
        seen = [f"images/{n}.png" for n in ([number] if number % 3 else [number, max(0, number - 1)])]
        prompts.append(
            Prompt(id=f"i{number}", ability="vision", question="What colour is it ?", answer="red", answer_kind="text",
                   images=tuple(seen))
        )  # fmt: skip
    for number in range(4):
        question = f"What is {number} + 2 ?"
        prompts.append(
            Prompt(id=f"t{number}", ability="reasoning", question=question, answer="2", answer_kind="number")
        )
    write_prompts(directory, "rl", prompts)
    return directory


@pytest.fixture(scope="module")
def runs(warm_python: Path, internvl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("tiled-engines")
    (work / "varied_replies.py").write_text(REWARD)
    start = Path(shutil.copytree(internvl_checkpoint, work / "start"))
    config = json.loads((start / "config.json").read_text())
    del config["tie_word_embeddings"]
    (start / "config.json").write_text(json.dumps(config))
    prompts = write_mixed_prompts(work / "prompts")
    (work / "zero3.json").write_text(json.dumps(deepspeed_settings({"stage": 3})))
    jobs = {}
    for name, share in JOBS.items():
        values: dict[str, Any] = {
            **SETTINGS, "model_name_or_path": start, "prompts": prompts, "output_dir": work / name, "freeze": "mid",
            "share_prompts": share, "max_steps": 3, "deepspeed": work / "zero3.json", "beta": 0.0, "num_iterations": 1,
            "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
        }  # fmt: skip
        jobs[name] = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    said = launch(work, jobs, warm_python)
    assert said["shared"].startswith("shared prompts: yes, ") and said["plain"].startswith("shared prompts: no, ")
    return {"start": start, **{name: work / name / "final" for name in JOBS}}


def distance(one: Checkpoint, other: Checkpoint, name: str) -> tuple[float, float]:
    values = [one.tensor(name).double(), other.tensor(name).double()]
    return float((values[0] - values[1]).norm()), float(values[1].norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(JOBS))
def test_frozen_tensors_keep_their_bits_and_every_other_block_trains(name: str, runs: dict[str, Path]) -> None:
    start, final = open_checkpoint(runs["start"]), open_checkpoint(runs[name])
    layout = layout_of(runs["start"])
    assert not layout.tied and "lm_head.weight" in final.tensors
    plan = plan_freeze(layout, FreezeArguments(freeze=["mid"]))
    assert all(start.data(tensor) == final.data(tensor) for tensor in plan.frozen)
    assert [stored.name_on_disk for stored in final.tensors.values()] == [
        stored.name_on_disk for stored in start.tensors.values()
    ]
    for block in ("early", "late", "vision", "projector", "embed", "norm", "head"):
        members = plan_freeze(layout, FreezeArguments(freeze=[block])).frozen
        assert any(start.data(tensor) != final.data(tensor) for tensor in members), f"{block} did not train"
    if name in ENGINES:
        expect_engines("internvl", name)


@pytest.mark.slow
def test_shared_prompts_end_as_plain_trl_does(runs: dict[str, Path]) -> None:
    start, plain, ours = (open_checkpoint(runs[name]) for name in ("start", "plain", "shared"))
    moved = sum(distance(plain, start, tensor)[0] ** 2 for tensor in start.tensors) ** 0.5
    apart = sum(distance(ours, plain, tensor)[0] ** 2 for tensor in start.tensors) ** 0.5
    assert moved > 1e-2 and apart <= 1e-4 * moved, (apart, moved)
    for tensor in start.tensors:
        apart, size = distance(ours, plain, tensor)
        assert apart <= TOLERANCE * max(size, 1e-3), tensor
