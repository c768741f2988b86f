"""Which model is evaluated? A checkpoint, an adapter on its base, or the splice that a recipe (`*.yaml`) describes.

Adapters and splices are built in memory. An adapter is merged in fp32 and rounded once to the base's stored dtype, as
`merge.splice` would write it; configuration, tokenizer and processor are the base's.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.recipes.plan import SplicePlan, fingerprint, make_plan
from merge.recipes.recipe import read_recipe, recipe_dict
from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import check_model, open_model, other_base
from models.loading import load_model, load_processor
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
    """The checkpoint, an adapter's base, or for a recipe the donor that provides configuration and processor."""
    fingerprint: str
    """Changes with the weights and, for a recipe, with its donors' files."""
    plan: SplicePlan | None = field(default=None, repr=False)
    """The recipe, if any."""
    merged: MergedCheckpoint | None = field(default=None, repr=False)
    """The adapter with its base, if it is one."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` records about it besides its name."""
        if self.merged is not None:
            return {"adapter": self.merged.facts}
        return {} if self.plan is None else {"recipe": recipe_dict(self.plan.recipe)}

    def load(
        self, *, dtype: str, attn_implementation: str
    ) -> tuple["PreTrainedModel", "ProcessorMixin | PreTrainedTokenizerBase"]:
        """Returns the model, on the GPU if there is one, and its processor."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        on = "" if self.merged is None else f", merged into {self.directory},"
        say(f"loading {self.name}{on} on {device}")
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        processor = load_processor(self.directory)
        if self.plan is not None:
            from merge.tensors.live import LiveSplicer

            return LiveSplicer(device=device, **options).splice(self.plan), processor
        if self.merged is not None:
            from models.adapters.loading import load_merged

            return load_merged(self.merged, **options).eval().to(device), processor
        return load_model(self.directory, **options).eval().to(device), processor


def check_subject(name: str) -> None:
    """Refuses what is plainly no checkpoint, adapter or recipe's file, in a moment.

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
        check_model(str(path))
    elif not path.is_file():
        raise ValueError(f"{path}: no such file; expected a recipe of merge.splice")


def open_subject(name: str, base: str | None = None) -> Subject:
    """Resolves `--model`: folder or hub id of a checkpoint or an adapter, or a recipe's file.

    Args:
        name: the model.
        base: the base of an adapter; by default the one that its configuration names.

    Raises:
        ValueError: if it is none of these, or damaged.
    """
    path = Path(name)
    if path.suffix not in RECIPE_SUFFIXES or path.is_dir():
        opened = open_model(name, base=base)
        merged = opened if isinstance(opened, MergedCheckpoint) else None
        if merged is not None and (warning := other_base(merged)):
            say(f"note: {warning}")
        return Subject(name=name, directory=opened.directory, fingerprint=opened.fingerprint(), merged=merged)
    if base is not None:
        raise ValueError(f"{name} is a recipe, and --base {base} names the base of an adapter; leave --base out")
    plan = make_plan(read_recipe(path))
    files = [(file.name, file.sha256) for file in plan.files]
    return Subject(
        name=name,
        directory=plan.donors[plan.recipe.files_donor].directory,
        fingerprint=hashlib.sha256(json.dumps([fingerprint(plan), *files]).encode()).hexdigest(),
        plan=plan,
    )
