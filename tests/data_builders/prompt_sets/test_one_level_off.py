"""A prompt set named one level off: the error names the folder that was meant."""

import re
from pathlib import Path

import pytest

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval.tasks import open_task
from tracking.run import open_run


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """The output directory of a build, whose data/ is the prompt set, as `data_builders.build` leaves it."""
    directory = tmp_path / "outputs" / "data"
    with open_run(directory, command="data_builders.build", settings={}):
        (directory / "data" / "images").mkdir(parents=True)
        (directory / "records.jsonl").write_text("{}\n")
        prompt = Prompt(id="a", ability="reasoning", question="1 + 1?", answer="2", answer_kind="number")
        for split in ("rl", "test"):
            write_prompts(directory / "data", split, [prompt])
    return directory


@pytest.mark.parametrize("named", [".", "data/images", ".."])
def test_the_folder_that_was_meant_is_named(build: Path, named: str) -> None:
    directory = (build / named).resolve()
    meant = build / "data" if named != ".." else None
    with pytest.raises(ValueError, match=r"test\.jsonl does not exist") as refused:
        read_prompts(directory, "test")
    assert (f"the prompt set is {meant}, one level off" in str(refused.value)) == (meant is not None)


def test_a_split_that_is_in_none_of_them_is_answered_with_those_there_are(build: Path) -> None:
    for directory in (build, build / "data"):
        with pytest.raises(ValueError, match=re.escape(f"{build / 'data'} has the splits rl, test")):
            read_prompts(directory, "sft")


def test_a_task_without_a_split_is_answered_with_the_tasks_that_were_meant(build: Path) -> None:
    tasks = f"{build / 'data'}:rl, {build / 'data'}:test"
    for directory in (build, build / "data"):
        with pytest.raises(ValueError, match=re.escape(tasks)):
            open_task(str(directory), cache_dir=build)
    file = build / "data" / "test.jsonl"
    with pytest.raises(ValueError, match=re.escape(f"expected FOLDER:SPLIT: {build / 'data'}:test")):
        open_task(str(file), cache_dir=build)
    with pytest.raises(ValueError, match=re.escape(f"expected its folder {build / 'data'}, and test as the split")):
        read_prompts(file, "test")
