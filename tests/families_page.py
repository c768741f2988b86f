"""What each family can do, as docs/families.md says it: the tests that find it out compare their cells with the page.

After a wanted change: REWRITE_FAMILIES=1 python -m pytest -n 0 tests/models/check/test_families.py
tests/train/test_family_processes.py, and read the diff. The tests then write the cells instead of comparing them.
"""

import os
import re
from dataclasses import dataclass, field

from models.families import FAMILIES
from tracking.command import REPOSITORY_ROOT

PAGE = REPOSITORY_ROOT / "docs" / "families.md"
COLUMNS = (
    "names", "freeze", "LoRA", "DDP", "ZeRO-2", "ZeRO-3", "shared prompts", "plan", "splice", "deltas", "skip",
    "attention", "swap", "eval",
)  # fmt: skip
HEAD = """# What each family can do

A family is a `model_type` of Transformers with a record in `models/families.py`. This page is written by the tests
(`tests/families_page.py`): each *yes* is a test on a small random model of the family's own configuration class. The
reasons for a *no*, and restrictions, are below. `python -m models.check --model CHECKPOINT` runs the same checks for a
checkpoint, except those with several processes; [your architecture](guides/your_architecture.md) says how to add a
family.

- *names*: every parameter has one place; names survive the way from memory to files and back.
- *freeze*, *LoRA*, *DDP*, *ZeRO-2*, *ZeRO-3*: what is frozen keeps its bits, all else trains. The last three are GRPO
  runs on two processes.
- *shared prompts*: the loss and gradients of a step that reads each prompt once are TRL's.
- *plan*: `train.plan` gives the bytes that weights, gradients and optimizer have in memory.
- *splice*: each tensor has its donor's bytes; loaded and in memory, a splice is the same model. *deltas*: NumPy's.
- *skip*: logits and replies are those of a model without the parts. *attention*: masses are eager attention's.
  *swap*: replies and log-probabilities are those of hidden states replaced by hooks.
- *eval*: replies in a padded batch are those of one prompt at a time.
"""
YES, NO, UNKNOWN = "yes", "no", "?"
ENGINES = ("DDP", "ZeRO-2", "ZeRO-3")
"""Columns of training by two processes."""


@dataclass
class Page:
    """The cells and their reasons."""

    cells: dict[str, dict[str, str]]
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def render(self) -> str:
        rows = [f"| family | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
        for family in FAMILIES:
            rows.append(f"| `{family}` | {' | '.join(self.cells[family][column] for column in COLUMNS)} |")
        lines = [f"- `{family}`, {column}: {reason}" for (family, column), reason in sorted(self.reasons.items())]
        return "\n".join([HEAD, *rows, "", *lines]) + "\n"


def read_page() -> Page:
    """Reads the page; families and columns that it lacks are unknown."""
    page = Page({family: dict.fromkeys(COLUMNS, UNKNOWN) for family in FAMILIES})
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    header = re.search(r"^\| family \| (.+) \|$", text, re.MULTILINE)
    columns = header[1].split(" | ") if header else []
    for family, cells in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE):
        known = dict(zip(columns, cells.split(" | "), strict=True))
        page.cells[family] = {column: known.get(column, UNKNOWN) for column in COLUMNS}
    for family, column, reason in re.findall(r"^- `(\w+)`, ([\w -]+): (.+)$", text, re.MULTILINE):
        page.reasons[family, column] = reason
    return page


def expect(family: str, found: dict[str, tuple[str, str | None]]) -> None:
    """Compares what a family can do with the page, or writes it there.

    Args:
        found: column -> `YES` or `NO`, and the restriction or reason, if there is one.
    """
    page = read_page()
    if os.environ.get("REWRITE_FAMILIES"):
        for column, (cell, reason) in found.items():
            page.cells[family][column] = cell
            page.reasons.pop((family, column), None)
            if reason is not None:
                page.reasons[family, column] = reason
        PAGE.write_text(page.render(), encoding="utf-8")
    for column, (cell, reason) in found.items():
        assert (page.cells[family][column], page.reasons.get((family, column))) == (cell, reason), (family, column)


def expect_engines(family: str, *engines: str) -> None:
    """The family keeps a frozen block bit-identical under these engines."""
    expect(family, dict.fromkeys(engines, (YES, None)))


def family_checkpoint(family: str) -> str:
    """Returns the name of the fixture with a checkpoint of a family: `MODEL_TYPE_checkpoint`, or the pocket model."""
    return "pocket_checkpoint" if family == "qwen2_5_vl" else f"{family}_checkpoint"
