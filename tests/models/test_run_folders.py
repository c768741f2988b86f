"""A model named by a folder around its checkpoint: the error names the checkpoint."""

import re
import shutil
from pathlib import Path

import pytest

from eval.replies.subject import open_subject
from models.checkpoint import open_checkpoint
from models.layout import layout_of


@pytest.mark.parametrize("name", ["final", "checkpoint"])
def test_the_checkpoint_in_an_output_directory_is_named(pocket_checkpoint: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pocket_checkpoint, tmp_path / name)
    shutil.copytree(pocket_checkpoint, tmp_path / "checkpoints" / "step-20")
    for opening in (open_checkpoint, layout_of, lambda directory: open_subject(str(directory))):
        with pytest.raises(ValueError, match=re.escape(f"its checkpoint is {tmp_path / name}: name that")):
            opening(tmp_path)


def test_checkpoints_further_below_are_listed(pocket_checkpoint: Path, tmp_path: Path) -> None:
    for place in ("sft/final", "base/final"):
        shutil.copytree(pocket_checkpoint, tmp_path / place)
    with pytest.raises(ValueError, match=re.escape(f"checkpoints below it: {tmp_path}/base/final, {tmp_path}/sft/fi")):
        open_checkpoint(tmp_path)


def test_a_folder_of_anything_else_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"config\.json does not exist; expected a checkpoint folder"):
        open_checkpoint(tmp_path)
