"""Which model is evaluated? A checkpoint, or the splice that a recipe (`*.yaml`) describes, built in memory."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.recipes.plan import SplicePlan, fingerprint, make_plan
from merge.recipes.recipe import read_recipe, recipe_dict
from models.checkpoint import open_checkpoint
from models.loading import check_checkpoint, load_model, load_processor, local_checkpoint
from tracking.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate; it is loaded on demand."""

    name: str
    """As it was given."""
    directory: Path
    """The checkpoint, or for a recipe the donor that provides configuration and processor."""
    fingerprint: str
    """Changes with the weights and, for a recipe, with its donors' files."""
    plan: SplicePlan | None = field(default=None, repr=False)
    """The recipe, if any."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` records about it besides its name."""
        return {} if self.plan is None else {"recipe": recipe_dict(self.plan.recipe)}

    def load(
        self, *, dtype: str, attn_implementation: str
    ) -> tuple["PreTrainedModel", "ProcessorMixin | PreTrainedTokenizerBase"]:
        """Returns the model, on the GPU if there is one, and its processor."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        say(f"loading {self.name} on {device}")
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        processor = load_processor(self.directory)
        if self.plan is not None:
            from merge.tensors.live import LiveSplicer

            return LiveSplicer(device=device, **options).splice(self.plan), processor
        return load_model(self.directory, **options).eval().to(device), processor


def check_subject(name: str) -> None:
    """Refuses what is plainly neither a checkpoint nor a recipe's file, in a moment.

    Args:
        name: as `open_subject` takes it, or `NAME=` and that.

    Raises:
        ValueError: that says what it is instead.
    """
    label, equals, after = name.partition("=")
    if equals and not (label and after):
        raise ValueError(f"{name!r} is no NAME=MODEL; expected a name and a checkpoint or recipe")
    path = Path(after if equals else name)
    if path.suffix not in RECIPE_SUFFIXES or path.is_dir():
        check_checkpoint(str(path))
    elif not path.is_file():
        raise ValueError(f"{path}: no such file; expected a recipe of merge.splice")


def open_subject(name: str) -> Subject:
    """Resolves `--model`: a checkpoint's folder or hub id, or a recipe's file.

    Raises:
        ValueError: if it is none of these, or damaged.
    """
    path = Path(name)
    if path.suffix not in RECIPE_SUFFIXES or path.is_dir():
        directory = local_checkpoint(name)
        return Subject(name=name, directory=directory, fingerprint=open_checkpoint(directory).fingerprint())
    plan = make_plan(read_recipe(path))
    files = [(file.name, file.sha256) for file in plan.files]
    return Subject(
        name=name,
        directory=plan.donors[plan.recipe.files_donor].directory,
        fingerprint=hashlib.sha256(json.dumps([fingerprint(plan), *files]).encode()).hexdigest(),
        plan=plan,
    )
