"""The swap on a look's page: in which layer an answer moves, which pairs come first, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analyze.look.plan import Reader
from analyze.look.swapped import SwappedAnswers, read_swaps, turning_points
from data_builders.pairs.files import pairs_fingerprint, write_pairs
from data_builders.pairs.pair import Pair
from eval.statistics.pairing import Entry

Change = Callable[[dict[str, Any]], None]


def answers(letters: str) -> SwappedAnswers:
    """Answers of k = 0 … L: `s`ource, `t`arget, `o`ther."""
    names = {"s": "source", "t": "target", "o": "other"}
    return SwappedAnswers(
        model="m", plain_target="1", plain_source="2", answers=tuple(names[one] for one in letters),
        replies=tuple(letters),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("letters", "last", "said"),
    [
        ("sstt", 1, "the answer moves if the swap begins at layer 1 or below"),
        ("stst", 2, "the answer moves if the swap begins at layer 2 or below, with gaps"),
        ("totot", None, "no swap gives the source’s answer"),
        ("ssss", 3, "it gives the source’s answer also without a swap"),
    ],
)
def test_the_layer_up_to_which_an_answer_moves(letters: str, last: int | None, said: str) -> None:
    assert (answers(letters).last_moved, answers(letters).said) == (last, said)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (28, 28)).save(folder / name)
    write_pairs(
        folder,
        [
            Pair(id=name, task="counting", prompt="How many ?", target_image="a.png", source_image="b.png",
                 target_answer="1", source_answer="2")
            for name in ("same", "apart", "wrong")
        ],
    )  # fmt: skip
    return folder


def write_swap(folder: Path, pairs: Path, letters: dict[str, str], change: Change = lambda run: None) -> Path:
    """Writes an output directory of `analyze.swap` with these answers; `change` alters its `run.json`."""
    folder.mkdir()
    run = {
        "command": "analyze.swap", "status": "finished", "attempts": [],
        "settings": {"model": "m", "model_fingerprint": "f", "modes": ["from", "only"],
                     "pairs": {"set": pairs_fingerprint(pairs)}},
    }  # fmt: skip
    change(run)
    (folder / "run.json").write_text(json.dumps(run))
    records = [
        {
            "key": f"set/{name}/{mode}", "set": "set", "id": name, "mode": mode, "left_out": None, "plain_target": "1",
            "plain_source": "2",
            "variants": [
                {"response": one, "scores": {"moved_to_source": one == "s", "kept_target": one == "t"}} for one in own
            ],
        }
        for name, own in letters.items()
        for mode in ("from", "only")
    ]  # fmt: skip
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def readers(tmp_path: Path) -> list[Reader]:
    run = {"settings": {"model": "m", "model_fingerprint": "f"}}
    return [Reader(entry=Entry(name, None, tmp_path), run=run, answers={}) for name in ("sft", "full")]


def test_pairs_that_models_answer_right_and_apart_come_first(tmp_path: Path, pairs: Path) -> None:
    first = write_swap(tmp_path / "1", pairs, {"same": "sstt", "apart": "sstt", "wrong": "ssss"})
    second = write_swap(tmp_path / "2", pairs, {"same": "sstt", "apart": "sttt", "wrong": "tttt"})
    found = read_swaps([f"sft={first}", f"full={second}"], [str(pairs)], readers(tmp_path))
    assert [one.pair.id for one in found] == ["apart", "same", "wrong"]
    assert [own.last_moved for own in found[0].answers] == [1, 0]
    assert found[0].image_paths == (pairs / "a.png", pairs / "b.png")
    rows = turning_points(found)
    assert [(row["model"], row["num_right"], row["num_moved"], row["median"]) for row in rows] == [
        ("sft", 2, 2, "1"),
        ("full", 3, 2, "0.5"),
    ]


@pytest.mark.parametrize(
    ("name", "change", "with_pairs", "message"),
    [
        ("ful", lambda run: None, True, "expected the name of one of the models .*did you mean 'full'"),
        ("full", lambda run: run.update(status="running"), True, "is not finished"),
        ("full", lambda run: run.update(command="analyze.skip"), True, "was written by analyze.skip"),
        ("full", lambda run: run["settings"].update(modes=["only"]), True, "expected a swap with --mode from"),
        ("full", lambda run: run["settings"].update(model_fingerprint="g"), True, "is not the model of full"),
        ("full", lambda run: run["settings"].update(pairs={"set": "0"}), True, "these pairs are not those"),
        ("full", lambda run: None, False, "name the folder of set with --pairs"),
    ],
)
def test_a_swap_that_is_of_no_use_is_refused(
    name: str, change: Change, with_pairs: bool, message: str, tmp_path: Path, pairs: Path
) -> None:
    folder = write_swap(tmp_path / "swap", pairs, {"same": "sstt"}, change)
    with pytest.raises(ValueError, match=message):
        read_swaps([f"{name}={folder}"], [str(pairs)] if with_pairs else [], readers(tmp_path))
