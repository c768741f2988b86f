"""Properties of every pair set: the same bytes for any number of processes and after kills; loading as data sets."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from data_builders import build
from data_builders.grounding.build import GROUNDING, GroundingArguments
from data_builders.pairs.files import read_pairs
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid, read_size
from data_builders.pocket.build import POCKET_PAIRS, PocketPairArguments
from tracking.command import REPOSITORY_ROOT, raised_by_us
from tracking.product import partial_path

KILLED = ["pocket_pairs", "--seed", "2", "--num-pairs", "24", "--split", "validation", "--kinds", "place", "colour"]
"""A set that takes some seconds: few scenes of the pocket world fall into its validation split."""
SMALL_GROUNDING = GroundingArguments(
    image_size="160x120", min_object_pixels=16, max_object_pixels=24, num_distractors=1
)
SETS = {
    "pocket_pairs": (POCKET_PAIRS, PocketPairArguments(kinds=["counting", "place", "blank"])),
    "grounding": (GROUNDING, SMALL_GROUNDING),
}


def build_here(directory: Path, task: str = "grounding", *, seed: int = 0, own: Any = None, **shared: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    pair_task, arguments = SETS[task]
    options = PairSetArguments(**{"num_pairs": 5, "num_workers": 1, **shared})
    drawing = Drawing(
        task=task, seed=seed, split=options.split, grid=open_vision_grid(options.processor), work_dir=directory / "work"
    )
    build_pair_set(directory, pair_task, own or arguments, drawing, options)
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("task", "numbers"), [("grounding", (1, 2, 3)), ("pocket_pairs", (1, 2))])
@pytest.mark.cases_slow
def test_every_file_is_the_same_for_any_number_of_processes(
    task: str, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    first, *others = (
        files_in(build_here(tmp_path / str(number), task, num_pairs=9, num_workers=number)) for number in numbers
    )
    assert len([name for name in first if name.startswith("images/")]) == 18
    assert all(other == first for other in others)


def test_the_files_hold_the_pixels_that_were_drawn(tmp_path: Path) -> None:
    for task in SETS:
        directory = build_here(tmp_path / task, task)
        pair_task, arguments = SETS[task]
        drawing = Drawing(
            task=task, seed=0, split="test", grid=open_vision_grid("qwen2_5_vl"), work_dir=directory / "work"
        )
        draw = pair_task.open(arguments, drawing)
        for index in (4, 0, 2):  # in any order
            for name, picture in draw(index).files.items():
                assert isinstance(picture, Image.Image)
                with Image.open(directory / name) as stored:
                    assert (stored.mode, stored.tobytes()) == (picture.mode, picture.tobytes())


@pytest.mark.parametrize("task", SETS)
def test_a_pair_does_not_depend_on_how_many_follow(task: str, tmp_path: Path) -> None:
    few, many = (files_in(build_here(tmp_path / str(number), task, num_pairs=number)) for number in (5, 12))
    for name, content in few.items():
        if name.startswith(("images/", "masks/")):
            assert many[name] == content
    for name in ("pairs.jsonl", "metadata.jsonl"):
        assert many[name].startswith(few[name])


@pytest.mark.parametrize("task", SETS)
def test_seed_and_split_change_every_pair(task: str, tmp_path: Path) -> None:
    sets = [
        build_here(tmp_path / "a", task),
        build_here(tmp_path / "b", task, seed=1),
        build_here(tmp_path / "c", task, split="train"),
        build_here(tmp_path / "d", task, split="validation"),
    ]
    pictures = [
        {content for name, content in files_in(directory).items() if name.startswith("images/") and "target" in name}
        for directory in sets
    ]
    assert len(set().union(*pictures)) == sum(map(len, pictures)) == 20


def test_a_pair_says_how_the_named_processor_sees_it(tmp_path: Path) -> None:
    for processor, resized, grid in (("qwen2_5_vl", [168, 112], [8, 12]), ("qwen3_vl", [320, 224], [14, 20])):
        for pair in read_pairs(build_here(tmp_path / processor, processor=processor)):
            meta = pair.meta or {}
            assert (meta["image_size"], meta["resized_size"], meta["grid"]) == ([160, 120], resized, grid)
            expected = [edge * resized[axis % 2] / [160, 120][axis % 2] for axis, edge in enumerate(pair.source_box)]  # type: ignore[arg-type]
            assert meta["source_box_resized"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("task", SETS)
def test_a_set_loads_as_an_image_folder_and_as_json(task: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    directory = build_here(tmp_path / "set", task, num_pairs=6)
    pairs = read_pairs(directory)
    cache = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    folder = load_dataset("imagefolder", data_dir=str(directory), **cache)
    rows = load_dataset("json", data_files=str(directory / "pairs.jsonl"), **cache)
    assert len(folder) == len(rows) == 6
    for pair, shown, row in zip(pairs, folder, rows, strict=True):
        for side, name in (("target", pair.target_image), ("source", pair.source_image)):
            assert shown[side].tobytes() == Image.open(directory / name).tobytes()
            assert row[f"{side}_image"] == name
        for read in (shown, row):
            assert [read["id"], read["task"], read["prompt"]] == [pair.id, pair.task, pair.prompt]
            assert read["meta"] == pair.meta
            assert tuple(read.get("target_box") or ()) == (pair.target_box or ())


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_set_and_leaves_no_process(tmp_path: Path) -> None:
    with running(KILLED, tmp_path / "killed", num_workers=2) as parent:
        partial = partial_path(tmp_path / "killed" / "data")
        wait_for_lines(partial / "pairs.jsonl", 5)
        workers = parent.children(recursive=True)
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    num_lines = (partial / "pairs.jsonl").read_bytes().count(b"\n")
    assert 5 <= num_lines < 24
    with (partial / "pairs.jsonl").open("a") as file:
        file.write('{"id": "pocket_pairs-0000')  # a line that the kill tore
    (partial / "images" / f"pocket_pairs-{num_lines:06d}-source.png").write_bytes(b"half a picture")
    (partial / "manifest.json").write_text("{}")
    build.main([*KILLED, "--num-workers", "1", "--output-dir", str(tmp_path / "killed")])
    build.main([*KILLED, "--num-workers", "1", "--output-dir", str(tmp_path / "whole")])
    assert files_in(tmp_path / "killed" / "data") == files_in(tmp_path / "whole" / "data")
    assert "manifest.json" not in json.loads((tmp_path / "whole" / "data" / "manifest.json").read_text())["files"]
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "status", "message"),
    [
        ("a worker", 1, "error: a worker process was killed, possibly for lack of memory"),
        ("by hand", 130, "interrupted; the same command continues where it stopped"),
    ],
)
def test_a_build_that_cannot_go_on_says_so_in_one_line(stop: str, status: int, message: str, tmp_path: Path) -> None:
    endless = [*KILLED, "--num-pairs", "100000"]  # the last of a flag given twice counts
    with running(endless, tmp_path, num_workers=2) as parent:
        workers = wait_for_workers(parent)
        if stop == "a worker":
            wait_for_lines(partial_path(tmp_path / "data") / "pairs.jsonl", 5)
            workers[0].kill()
        else:
            time.sleep(0.2)  # the workers are importing
            os.killpg(parent.pid, signal.SIGINT)  # as a terminal sends it, to all processes
        _, said = parent.communicate(timeout=60)
    assert parent.returncode == status
    last = [line for line in said.splitlines() if not line.startswith("pocket_pairs: ")]  # progress, on a slow machine
    assert len(last) == 1
    assert last[0].startswith(message)


def test_a_mistake_in_a_process_is_told_as_one_made_here(tmp_path: Path) -> None:
    too_long = GroundingArguments(image_size="9000x40", min_object_pixels=12, max_object_pixels=20)
    for num_workers in (1, 2):
        with pytest.raises(ValueError, match="picture of 9000 x 40: its sides differ by more than 200") as raised:
            build_here(tmp_path / str(num_workers), own=too_long, num_workers=num_workers)
        assert raised_by_us(raised.value)


def test_a_task_that_a_process_cannot_open_is_told_as_one_opened_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = GROUNDING._replace(open=read_size)  # takes neither such arguments nor a drawing
    monkeypatch.setitem(SETS, "grounding", (refuses, SMALL_GROUNDING))
    for num_workers in (1, 2):
        with pytest.raises(ValueError, match="expected pixels, such as 448") as raised:
            build_here(tmp_path / str(num_workers), num_workers=num_workers)
        assert raised_by_us(raised.value)


def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    command = ["pocket_pairs", "--num-pairs", "2", "--num-workers", "1", "--output-dir", str(tmp_path)]
    build.main(command)
    before = files_in(tmp_path)
    build.main([*command, "--num-workers", "2"])  # no setting of the product
    assert files_in(tmp_path) == before
    for changed, name in (
        (["--num-pairs", "3"], "num_pairs"), (["--split", "train"], "split"), (["--seed", "1"], "seed"),
        (["--kinds", "sum"], "kinds"), (["--processor", "qwen3_vl"], r"processor\.\w+"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"was made with {name} = "):
            build.main([*command, *changed])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs is 0; it must be at least 1"),
        ({"num_workers": -1}, "num_workers is -1; expected 0"),
        ({"split": "dev"}, "split 'dev' is unknown; expected one of train, validation, test"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairSetArguments(**options)


@contextmanager
def running(arguments: list[str], output_dir: Path, *, num_workers: int) -> Iterator[psutil.Popen]:
    """Runs a build as a process group of its own."""
    command = [sys.executable, "-m", "data_builders.build", *arguments, "--num-workers", str(num_workers)]
    with psutil.Popen(
        [*command, "--output-dir", str(output_dir)],
        cwd=REPOSITORY_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & lets its children ignore it
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_workers(parent: psutil.Popen) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert time.monotonic() < deadline, "no workers were started"
        time.sleep(0.01)
        workers = [child for child in parent.children() if is_worker(child)]
    return workers


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # another child, which has just ended
        return False


def wait_for_lines(path: Path, num_lines: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < num_lines:
        assert time.monotonic() < deadline, f"{path} did not reach {num_lines} lines"
        time.sleep(0.01)
