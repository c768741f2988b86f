"""A tiny prompt set with pictures, and checkpoints that differ from the pocket one in a known way."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from models.checkpoint import open_checkpoint
from models.layout import Layout, layout_of

COLOURS = {"red": (214, 40, 40), "green": (38, 150, 60), "blue": (40, 80, 210)}


def flip_bit(directory: Path, name: str, *, byte: int = 0, bit: int = 0) -> None:
    """Flips one bit of one tensor in a checkpoint's file, in place."""
    stored = open_checkpoint(directory).tensors[name]
    content = bytearray(stored.file.read_bytes())
    content[stored.offset + byte] ^= 1 << bit
    stored.file.write_bytes(content)


@pytest.fixture
def flipped() -> Callable[..., None]:
    return flip_bit


@pytest.fixture
def copy_of(tmp_path: Path, pocket_checkpoint: Path) -> Callable[[str], Path]:
    """Copies the pocket checkpoint under a name."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(pocket_checkpoint, tmp_path / name))

    return copy


@pytest.fixture
def hub_spelling(copy_of: Callable[[str], Path]) -> Path:
    """The pocket checkpoint as the hub spells it: `model.layers.…` and `visual.…`."""
    directory = copy_of("hub")
    path = directory / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = (
        content[8 : 8 + size].replace(b'"model.language_model.', b'"model.').replace(b'"model.visual.', b'"visual.')
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    assert b'"visual.' in header and b'"model.layers.0.' in header
    return directory


@pytest.fixture(scope="session")
def tiny_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven prompts, six of them with a picture, the same in the splits `sft`, `rl` and `test`."""
    directory = tmp_path_factory.mktemp("prompts")
    (directory / "images").mkdir()
    prompts = []
    for index, colour in enumerate([*COLOURS, *COLOURS]):
        image = Image.new("RGB", (56, 56), (236, 236, 236))
        image.paste(COLOURS[colour], (5 + index, 8, 30, 40))
        image.save(directory / "images" / f"{index}.png")
        prompts.append(
            Prompt(
                id=f"i{index}", ability="vision", question="What colour is it ?", answer=colour, answer_kind="text",
                images=(f"images/{index}.png",), response=f"<think>{colour}</think><answer>{colour}</answer>",
            )
        )  # fmt: skip
    for index in range(5):
        prompts.append(
            Prompt(
                id=f"t{index}", ability="reasoning", question=f"What is {index} + 2 ?", answer=str(index + 2),
                answer_kind="number", response=f"<think>{index}+2={index + 2}</think><answer>{index + 2}</answer>",
            )
        )  # fmt: skip
    for split in ("sft", "rl", "test"):
        write_prompts(directory, split, prompts)
    return directory


@pytest.fixture(scope="session")
def warm_checkpoint(
    shallow_checkpoint: Path, tiny_prompts: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """A shallow pocket checkpoint after a short SFT: it answers in form and sometimes right, so that rewards differ."""
    from train.sft import main

    def build(folder: Path) -> None:
        values = {
            "model_name_or_path": shallow_checkpoint, "prompts": tiny_prompts, "split": "sft",
            "output_dir": folder / "run", "max_steps": 25, "per_device_train_batch_size": 11, "learning_rate": 2e-3,
            "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none", "bf16": False,
            "gradient_checkpointing": False, "use_cpu": True,
        }  # fmt: skip
        main([word for name, value in values.items() for word in (f"--{name}", str(value))])

    return made_once("warm-checkpoint", build) / "run" / "final"


@pytest.fixture(scope="session")
def warm_layout(warm_checkpoint: Path) -> Layout:
    return layout_of(warm_checkpoint)
