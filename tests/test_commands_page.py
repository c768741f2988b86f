"""Does docs/commands.md list every command, by the question that it answers? It is generated from the modules.

After a wanted change: REWRITE_COMMANDS=1 python -m pytest tests/test_commands_page.py, and read the diff.
"""

import ast
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house import Package, read_house
from tracking.command import REPOSITORY_ROOT

PAGE = REPOSITORY_ROOT / "docs" / "commands.md"
HEAD = """# Commands

Every command, by the question it answers. Each runs from the repository root as `python -m COMMAND`; `--help` lists its
arguments, and most take `--config FILE`, a YAML file with them. What each command writes is in [design.md](design.md).

This page is generated from the first lines of the modules (`tests/test_commands_page.py`).
"""
GUIDES = {
    "analyze.attention": "probes", "analyze.deltas": "weight-changes", "analyze.layers": "layers",
    "analyze.look": "look", "analyze.report": "probes", "analyze.skip": "probes", "analyze.swap": "probes",
    "analyze.transplant": "layers", "data_builders.build": "own-data",
    "data_builders.contact_sheet": "pairs", "data_builders.hub_set": "pairs", "data_builders.mini_coco_build": "pairs",
    "data_builders.pocket_descriptions": "grading", "data_builders.validate": "pairs",
    "data_builders.vocabulary": "pairs", "eval.boundary": "grading", "eval.claims": "statistics",
    "eval.compare": "statistics", "eval.import": "import", "eval.power": "plan", "eval.regrade": "grading",
    "eval.run": "grading", "eval.support": "statistics", "eval.tower": "probes", "merge.all": "splices",
    "merge.splice": "splices", "merge.verify": "splices", "models.check": "your_architecture",
    "models.fetch": "clusters", "slurm.cancel": "clusters",
    "slurm.gather": "clusters", "slurm.launch": "clusters", "slurm.status": "clusters", "train.grpo": "freeze",
    "train.necessity": "freeze", "train.plan": "plan", "train.sft": "own-data", "train.verify": "verify",
}  # fmt: skip
"""Command -> its page in docs/guides."""


TABLE = "| question | command | purpose | guide |\n|---|---|---|---|\n"


class Command(NamedTuple):
    """One command as the page shows it."""

    name: str
    question: str
    purpose: str


def commands_of(root: Path, package: str) -> list[Command]:
    """Returns a package's commands: modules outside rooms that start something, and rooms with a `__main__.py`.

    Raises:
        ValueError: for one whose first line is no question with an answer.
    """
    found = []
    for path in [*sorted((root / package).glob("*.py")), *sorted((root / package).glob("*/__main__.py"))]:
        if path.name == "__main__.py":
            described = path.with_name("command.py") if path.with_name("command.py").is_file() else path
            name = f"{package}.{path.parent.name}"
        else:
            described, name = path, f"{package}.{path.stem}"
        if "if __name__ ==" in path.read_text(encoding="utf-8"):
            found.append(read_command(name, described))
    return sorted(found)


def read_command(name: str, path: Path) -> Command:
    """Returns a command by the first line of its module: a question, and one sentence that answers it."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    match = re.fullmatch(r"([A-Z].*\?) ([^?]+\.)", line)
    if match is None:
        raise ValueError(f"{path}: the first line is {line!r}; expected a question and one sentence that answers it")
    return Command(name, match[1], match[2])


def render(root: Path, packages: list[Package], guides: dict[str, str]) -> str:
    """Returns the page."""
    parts = [HEAD]
    for package in packages:
        commands = commands_of(root, package.name)
        if not commands:
            continue
        parts.append(f"\n## `{package.name}`: {package.question}\n\n{TABLE}")
        for name, question, purpose in commands:
            guide = f"[{guides[name]}](guides/{guides[name]}.md)" if name in guides else ""
            parts.append(f"| {question} | `{name}` | {purpose} | {guide} |\n")
    return "".join(parts)


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    return read_house(REPOSITORY_ROOT / "docs" / "design.md")


def test_the_page_lists_every_command_as_its_module_describes_it(packages: list[Package]) -> None:
    text = render(REPOSITORY_ROOT, packages, GUIDES)
    if os.environ.get("REWRITE_COMMANDS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text


def test_guides_are_named_of_commands_and_pages_that_exist(packages: list[Package]) -> None:
    names = {command.name for package in packages for command in commands_of(REPOSITORY_ROOT, package.name)}
    assert {*GUIDES} - names == set()
    guides = REPOSITORY_ROOT / "docs" / "guides"
    if not guides.is_dir():
        pytest.skip("docs/guides is not here")
    missing = sorted({guide for guide in GUIDES.values() if not (guides / f"{guide}.md").is_file()})
    assert missing == []


def test_a_command_that_is_new_or_described_otherwise_changes_the_page(tmp_path: Path) -> None:
    (tmp_path / "eval" / "tower").mkdir(parents=True)
    guard = '\n\nif __name__ == "__main__":\n    main()\n'
    (tmp_path / "eval" / "run.py").write_text(f'"""What can it do? Answers all prompts.\n\nMore.\n"""{guard}')
    (tmp_path / "eval" / "part.py").write_text('"""No command."""\n')
    package = Package(name="eval", question="what can it do?", rooms=(), imports=())
    before = render(tmp_path, [package], {"eval.run": "grading"})
    assert "| What can it do? | `eval.run` | Answers all prompts. | [grading](guides/grading.md) |\n" in before
    assert "part" not in before
    (tmp_path / "eval" / "tower" / "command.py").write_text('r"""What does it know? Probes its features."""\n')
    (tmp_path / "eval" / "tower" / "__main__.py").write_text(f'"""Runs it."""{guard}')
    after = render(tmp_path, [package], {"eval.run": "grading"})
    assert after == before + "| What does it know? | `eval.tower` | Probes its features. |  |\n"
    (tmp_path / "eval" / "tower" / "command.py").write_text('"""What does it know? Probes them."""\n')
    assert render(tmp_path, [package], {}) != after
    for line in ("Probes a tower.", "What does it know?", "What does it know? And what not?"):
        (tmp_path / "eval" / "tower" / "command.py").write_text(f'"""{line}"""\n')
        with pytest.raises(ValueError, match="expected a question and one sentence"):
            render(tmp_path, [package], {})
