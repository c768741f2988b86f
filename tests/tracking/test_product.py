import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracking.command import REPOSITORY_ROOT, command_module
from tracking.product import check_output_file, partial_directory, partial_file, write_text


def kill_while_writing(opener: str, path: Path) -> None:
    """Starts a process that writes half a product at `path` and kills it there."""
    script = (
        "import sys, time; from pathlib import Path\n"
        f"from tracking.product import {opener}\n"
        f"with {opener}(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half' if partial.is_dir() else partial).write_text('half')\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.kill()


def test_killed_directory_writer_leaves_only_a_partial_which_the_next_one_removes(tmp_path: Path) -> None:
    path = tmp_path / "final"
    kill_while_writing("partial_directory", path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".partial-final"]
    with partial_directory(path) as partial:
        assert not list(partial.iterdir())
        (partial / "whole").write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]
    assert [entry.name for entry in path.iterdir()] == ["whole"]


def test_kept_directory_is_continued_after_a_kill_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "final"
    kill_while_writing("partial_directory", path)
    with pytest.raises(RuntimeError, match="half way"), partial_directory(path, keep=True) as partial:
        assert [entry.name for entry in partial.iterdir()] == ["half"]
        (partial / "more").write_text("more")
        raise RuntimeError("half way")
    with partial_directory(path, keep=True) as partial:
        assert sorted(entry.name for entry in partial.iterdir()) == ["half", "more"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_killed_file_writer_leaves_the_previous_file_untouched(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    kill_while_writing("partial_file", path)
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), partial_directory(tmp_path / "final") as partial:
        (partial / "half").write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"), partial_file(tmp_path / "table.csv") as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_directory_that_exists_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "final"
    path.mkdir()
    (path / "model").write_text("precious")
    with pytest.raises(ValueError, match="exists already"), partial_directory(path):
        pass
    assert (path / "model").read_text() == "precious"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "report.html", "x")
    with partial_directory(tmp_path / "c" / "d" / "final") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("y")
    assert (tmp_path / "a" / "b" / "report.html").read_text() == "x"
    assert (tmp_path / "c" / "d" / "final" / "sub" / "file").read_text() == "y"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder; expected the path of the file"),
        ("folder", "is a folder; expected the path of the file"),
        ("file/new.json", "file is not a folder"),
        ("gone/new.json", "gone is not a folder"),
        ("pipe", "is no regular file"),
        (f"{250 * 'n'}.json", "the name is too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("gone").symlink_to("nowhere")
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match=message):
        check_output_file(name)
    for good in ("file", "new.json", "folder/a/b/new.json", f"{240 * 'n'}.json"):
        check_output_file(good)
        write_text(Path(good), "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="no permission to write in"):
        check_output_file(str(tmp_path / "new.json"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("models.check", "--model MODEL --output"),
        ("train.verify", "--start MODEL --end MODEL --identical --report"),
        ("train.plan", "--model MODEL --json"),
        ("analyze.report", "MODEL --output"),
        ("data_builders.contact_sheet", "MODEL --output"),
        ("data_builders.hub_set", "MODEL --repo-id a/b --dry-run --output"),
        ("benchmarks.graders", "--output"),
    ],
)
def test_every_option_for_an_output_file_is_checked(command: str, words: str, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "folder"
    model.mkdir()
    folder.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    argv = [str(model) if word == "MODEL" else word for word in words.split()]
    with pytest.raises(ValueError, match=f"{argv[-1]}: .*folder' is a folder"):
        command_module(command).main([*argv, str(folder)])
    assert not list(folder.iterdir())
