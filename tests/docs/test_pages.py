"""The README, the tutorial and the guides are short, point to what exists, and name every command."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import GUIDES, PAGES, commands, links, split_block
from tracking.command import REPOSITORY_ROOT, did_you_mean

README = REPOSITORY_ROOT / "README.md"
DOCUMENTS = (*PAGES, *(REPOSITORY_ROOT / "docs" / f"{name}.md" for name in ("glossary", "cluster")))
PACKAGES = ("models", "data_builders", "merge", "eval", "analyze", "train", "slurm")
SUBJECTS = {
    "freeze", "verify", "plan", "probes", "weight-changes", "splices", "pairs", "grading", "statistics", "clusters",
    "own-data", "your_architecture", "calibration", "graders", "import", "layers", "look", "elements", "trajectory",
    "when_does_rl_help",
}  # fmt: skip
MAX_README_LINES = 130
MAX_GUIDE_LINES = 120
_CODE_FILE = re.compile(rf"`((?:tracking|tests|benchmarks|{'|'.join(PACKAGES)})/[\w/.-]+(?:\.py|\.json|/))`")


def ids(path: Path) -> str:
    return path.stem


def suite_commands() -> set[str]:
    """Returns every `python -m` command: a module that can be started, or a folder with `__main__.py`."""
    found = set()
    for package in PACKAGES:
        for path in (REPOSITORY_ROOT / package).glob("*.py"):
            if '__name__ == "__main__"' in path.read_text():
                found.add(f"{package}.{path.stem}")
        found |= {f"{package}.{path.parent.name}" for path in (REPOSITORY_ROOT / package).glob("*/__main__.py")}
    return found


def test_there_is_a_guide_for_each_subject() -> None:
    assert {path.stem for path in GUIDES} == SUBJECTS


def test_the_readme_and_the_guides_are_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES
    for path in GUIDES:
        assert len(path.read_text().splitlines()) < MAX_GUIDE_LINES, path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_linked_files_exist(path: Path) -> None:
    for link in links(path):
        assert (path.parent / link).is_file(), f"{path.name} links {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_files_named_in_the_text_exist(path: Path) -> None:
    named = _CODE_FILE.findall(path.read_text()) + re.findall(r"configs/[\w/.]+\.(?:yaml|json)", path.read_text())
    for name in named:
        assert (REPOSITORY_ROOT / name).exists() or name.endswith("mine.yaml"), f"{path.name} names {name}"


def test_the_readme_links_every_guide() -> None:
    linked = {(README.parent / link).resolve() for link in links(README)}
    assert not set(GUIDES) - linked


def test_every_command_is_named_in_the_readme_or_a_guide() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    missing = sorted(name for name in suite_commands() if not re.search(rf"\b{re.escape(name)}\b", text))
    assert not missing


def test_every_command_that_a_page_names_exists() -> None:
    known = suite_commands()
    for path in DOCUMENTS:
        for name in re.findall(rf"(?:-m |`)((?:{'|'.join(PACKAGES)})\.[a-z_]+)\b(?!\.\w)", path.read_text()):
            assert name in known, f"{path.name} names {name}{did_you_mean(name, known)}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_have_no_placeholders(page: Path) -> None:
    for command in commands(page):
        shown = command.text.partition("<<")[0].partition("   #")[0]
        placeholders = re.findall(r"(?<![\w$/{.-])[A-Z][A-Z0-9_]*(?![\w/:=.-])", shown)
        assert not placeholders, f"{page.name}: {placeholders} in {command.text}"
        assert "…" not in shown and "..." not in shown, f"{page.name}: {command.text}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_single_letter_stands_for_a_path(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        assert not re.search(r"(?:^|[\s=])[A-Z](?:/|$|\s|=)", code), f"{page.name}: `{code}`"


def test_a_block_is_cut_into_commands() -> None:
    block = (
        "# a remark\n\nmake pocket   # takes 12 minutes\npython -m a.b --x 1 \\\n  --y 2   # exit status 1\n"
        "cat > f <<'END'\nline \\\nEND\naccelerate launch -m a.c --z 'p q'   # needs a GPU\n"
    )
    first, second, third, fourth = split_block(block, page="p")
    assert (first.words, first.module, first.only_checked, first.status) == (["make", "pocket"], None, True, 0)
    assert (second.module, second.arguments, second.only_checked, second.status) == (
        "a.b", ["--x", "1", "--y", "2"], False, 1,
    )  # fmt: skip
    assert third.text.splitlines()[-1] == "END" and third.module is None
    assert (fourth.module, fourth.arguments, fourth.only_checked) == ("a.c", ["--z", "p q"], True)
