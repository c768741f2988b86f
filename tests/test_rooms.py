"""Are packages and rooms ordered as docs/design.md says? And would each of these checks notice if they were not?"""

from pathlib import Path

import pytest

from tests.house import (
    MAX_MODULES,
    Package,
    Source,
    breaches_of_grading,
    busy_leaves,
    circles,
    crowded_folders,
    file_graph,
    folder_graph,
    misplaced_commands,
    read_house,
    read_source,
    upward_imports,
)
from tracking.command import REPOSITORY_ROOT

COMMAND = "def main() -> None: ...\n\n\nif __name__ == '__main__':\n    main()\n"


@pytest.fixture(scope="module")
def house() -> list[Package]:
    return read_house(REPOSITORY_ROOT / "docs" / "design.md")


@pytest.fixture(scope="module")
def source(house: list[Package]) -> Source:
    return read_source(REPOSITORY_ROOT, [package.name for package in house])


def test_no_folder_is_crowded() -> None:
    assert crowded_folders(REPOSITORY_ROOT) == []


def test_nothing_imports_in_a_circle(source: Source) -> None:
    assert busy_leaves(source) == []
    assert circles(file_graph(source)) == []
    assert circles(folder_graph(source)) == []


def test_every_import_goes_downwards(source: Source, house: list[Package]) -> None:
    assert upward_imports(source, house) == []


def test_all_packages_are_on_the_page(house: list[Package]) -> None:
    here = {path.parent.name for path in REPOSITORY_ROOT.glob("[a-z]*/__init__.py")}
    assert {package.name for package in house if "." not in package.name} == here


def test_commands_stand_outside_rooms_or_in_main(source: Source) -> None:
    assert misplaced_commands(source) == []


def test_the_grader_is_used_by_its_exported_names(source: Source) -> None:
    assert breaches_of_grading(source) == []


def write(root: Path, files: dict[str, str]) -> Source:
    """Writes modules, with an `__init__.py` in each of their folders, and reads them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in [path.parent, *path.parent.parents]:
            if folder.is_relative_to(root) and folder != root and not (folder / "__init__.py").exists():
                (folder / "__init__.py").write_text("")
    return read_source(root, sorted({Path(name).parts[0] for name in files}))


def test_a_crowded_folder_is_noticed_and_only_there(tmp_path: Path) -> None:
    for folder in ("eval/replies", "tests/eval", "configs/x", ".venv/lib", "outputs/run"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(MAX_MODULES + 1):
            (tmp_path / folder / f"m{number}.py").touch()
    assert crowded_folders(tmp_path) == ["eval/replies holds 17 modules; expected at most 16"]
    (tmp_path / "eval" / "replies" / "m0.py").unlink()
    assert crowded_folders(tmp_path) == []


@pytest.mark.parametrize(
    "back",
    [
        "from eval.a.one import x\n",
        "import eval.a.one\n",
        "from eval.a import one\n",
        "from ..a.one import x\n",
        "def later():\n    from eval.a.one import x\n",
        "if TYPE_CHECKING:\n    from eval.a.one import x\n",
    ],
)
def test_circles_are_noticed_in_every_spelling(tmp_path: Path, back: str) -> None:
    source = write(tmp_path, {"eval/a/one.py": "from eval.b.two import y\n", "eval/b/two.py": back})
    assert circles(file_graph(source)) == [
        "eval.a.one -> eval.b.two -> eval.a.one",
        "eval.b.two -> eval.a.one -> eval.b.two",
    ]
    assert circles(folder_graph(source)) == ["eval.a -> eval.b -> eval.a", "eval.b -> eval.a -> eval.b"]


def test_a_circle_between_folders_alone_and_one_of_three_files_are_noticed(tmp_path: Path) -> None:
    files = {"eval/a/one.py": "import eval.b.two\n", "eval/b/two.py": "", "eval/b/three.py": "import eval.a.four\n"}
    source = write(tmp_path, {**files, "eval/a/four.py": ""})
    assert circles(file_graph(source)) == []
    assert len(circles(folder_graph(source))) == 2
    three = write(tmp_path, {**files, "eval/a/four.py": "", "eval/b/two.py": "import eval.b.three\n",
                             "eval/b/three.py": "import eval.a.one\n"})  # fmt: skip
    assert "eval.a.one -> eval.b.two -> eval.b.three -> eval.a.one" in circles(file_graph(three))


def test_a_package_that_imports_as_it_is_imported_is_noticed(tmp_path: Path) -> None:
    source = write(
        tmp_path, {"train/__init__.py": "from train.a.one import x\n", "train/a/one.py": "from train import y\n"}
    )
    assert circles(file_graph(source)) == []  # the package is taken for a leaf
    assert len(busy_leaves(source)) == 1


PAGE = """# Design

## Packages and rooms

| package | question it answers | rooms, lowest first | imports from |
|---|---|---|---|
| `models/` | what? | – | – |
| `eval/` | how? | grading, replies, commands | models |

## Words

| `train/` | not a package | a | b |
"""


def test_imports_against_the_order_of_the_page_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "design.md").write_text(PAGE)
    house = read_house(tmp_path / "design.md")
    assert house == [
        Package(name="models", question="what?", rooms=(), imports=()),
        Package(name="eval", question="how?", rooms=("grading", "replies", "commands"), imports=("models",)),
    ]
    sound = {
        "models/loading.py": "import models.shards\n", "models/shards.py": "",
        "eval/run.py": "from eval.replies.engines import x\nfrom models.loading import y\n",
        "eval/grading/grader.py": "", "eval/replies/engines.py": "from eval.grading import grader\n",
    }  # fmt: skip
    assert upward_imports(write(tmp_path, sound), house) == []
    for name, text, said in (
        ("models/shards.py", "from eval.run import x\n", "models does not import from eval"),
        ("eval/grading/grader.py", "from eval.replies import engines\n", "replies stands above grading"),
        ("eval/replies/engines.py", "def f():\n    import eval.run\n", "commands stands above replies"),
        ("eval/judge/asking.py", "", "eval/judge is missing from the page"),
        ("slurm/run.py", "", "slurm is missing from the page"),
    ):
        root = tmp_path / said.replace("/", " ")
        (found,) = upward_imports(write(root, {**sound, name: text}), house)
        assert said in found
    without = write(tmp_path / "without", {name: "" for name in sound if "replies" not in name})
    assert upward_imports(without, house) == ["eval/replies is on the page, not here"]
    above = Package(name="models.check", question="", rooms=(), imports=("models", "eval"))
    with_room = {**sound, "models/check/all.py": "import eval.run\nimport models.shards\n"}
    assert upward_imports(write(tmp_path / "room", with_room), [*house, above]) == []
    back = write(tmp_path / "back", {**with_room, "models/loading.py": "import models.check.all\n"})
    assert upward_imports(back, [*house, above]) == [
        "models.loading imports models.check.all, but models does not import from models.check"
    ]
    upside_down = [Package(name="models", question="", rooms=(), imports=("eval",)), house[1]]
    assert upward_imports(write(tmp_path, sound), upside_down) == ["models imports from eval, which is not above it"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("eval/helpers.py", "def main() -> None: ...\n", "eval.helpers is no command"),
        ("eval/helpers.py", "if __name__ == '__main__':\n    print()\n", "eval.helpers is no command"),
        ("eval/replies/engines.py", COMMAND, "eval.replies.engines has a __main__ guard inside a room"),
        ("eval/tower/__main__.py", COMMAND, "eval.tower.__main__ does not run main of eval.tower.command"),
        ("eval/tower/__main__.py", "from eval.tower.command import main\n", "eval.tower.__main__ does not run main"),
    ],
)
def test_a_part_outside_and_a_command_inside_a_room_are_noticed(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    sound = {
        "eval/run.py": COMMAND, "eval/replies/engines.py": "", "eval/tower/command.py": "def main() -> None: ...\n",
        "eval/tower/__main__.py": f"from eval.tower.command import main\n\n{COMMAND}", "models/shards.py": "",
        "eval/grading/worker.py": COMMAND,
    }  # fmt: skip
    assert misplaced_commands(write(tmp_path / "sound", sound)) == []
    (found,) = misplaced_commands(write(tmp_path, {**sound, name: text}))
    assert said in found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train/rewards.py", "from eval.grading.grader import grade\n", "a part of the grader"),
        ("train/rewards.py", "from eval.grading import grader\n", "a part of the grader"),
        ("train/rewards.py", "def f():\n    import eval.grading.grader\n", "a part of the grader"),
        (
            "train/rewards.py",
            "from eval.grading import KINDS\n",
            "takes KINDS from eval.grading",
        ),
        ("eval/grading/grader.py", "from tracking.product import write_text\n", "imports tracking.product"),
        ("eval/grading/grader.py", "import torch\n", "eval.grading.grader imports torch"),
        ("eval/grading/grader.py", "from eval.replies.engines import x\n", "imports eval.replies.engines"),
    ],
)
def test_what_the_grader_does_not_offer_or_must_not_take_is_noticed(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    sound = {
        "eval/grading/__init__.py": "from eval.grading.grader import grade\n\n__all__ = ['grade']\n",
        "eval/grading/grader.py": "import re\nimport math_verify\nfrom sympy import Expr\nimport tracking.command\n",
        "eval/replies/engines.py": "", "tracking/command.py": "", "tracking/product.py": "",
        "train/rewards.py": "from eval.grading import grade\n",
        "benchmarks/grading.py": "from eval.grading.grader import grade\n",
    }  # fmt: skip
    assert breaches_of_grading(write(tmp_path / "sound", sound)) == []
    (found,) = breaches_of_grading(write(tmp_path, {**sound, name: text}))
    assert said in found
