"""Sets of pairs: read in both layouts, written, and looked over for what would spoil their rates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_builders.pairs.defects import NOT_SEEN, preflight, summarise
from data_builders.pairs.files import pairs_fingerprint, read_pairs, write_pairs
from data_builders.pairs.pair import TASKS, Pair
from tracking.command import REPOSITORY_ROOT

PUBLISHED = REPOSITORY_ROOT.parent / "shared" / "data" / "published_pairs"
SAME_WORD = (10, 15, 16, 48, 59, 75, 95, 96)

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="needs the paper's published pairs in ../shared/data/published_pairs"
)


def a_pair(number: int = 0, **changes: Any) -> Pair:
    values = {
        "id": f"pair-{number}",
        "task": "ocr",
        "prompt": "Read the word .",
        "target_image": f"images/{number}-t.png",
        "source_image": f"images/{number}-s.png",
        "target_answer": "tensor",
        "source_answer": "vector",
    }
    return Pair(**{**values, **changes})


def draw_images(directory: Path, pair: Pair, sizes: tuple[tuple[int, int], tuple[int, int]] = ((40, 30),) * 2) -> None:
    (directory / "images").mkdir(exist_ok=True)
    for name, size, colour in zip((pair.target_image, pair.source_image), sizes, ("red", "blue"), strict=True):
        Image.new("RGB", size, colour).save(directory / name)


def kinds_of(directory: Path, *pairs: Pair) -> list[str]:
    return [defect.kind for defect in preflight(directory, pairs)]


@needs_published
@pytest.mark.parametrize("task", TASKS)
def test_the_published_pairs_load(task: str) -> None:
    pairs = read_pairs(PUBLISHED / task)
    rows = [json.loads(line) for line in (PUBLISHED / task / "data.jsonl").read_text().splitlines()]
    assert len(pairs) == len({pair.id for pair in pairs}) == 100
    assert {pair.task for pair in pairs} == {task}
    for pair, row in zip(pairs, rows, strict=True):
        assert row["prompt"] in (pair.prompt, "<image>" + pair.prompt)
        assert (PUBLISHED / task / pair.target_image).is_file()
        assert (PUBLISHED / task / pair.source_image).is_file()
        answers = (pair.target_answer, pair.source_answer)
        if task == "grounding":
            assert (list(pair.target_box or ()), list(pair.source_box or ())) == (
                row["meta"]["target_bbox_xyxy"],
                row["meta"]["source_bbox_xyxy"],
            )
            assert answers[0] == ",".join(map(str, row["meta"]["target_bbox_xyxy"]))
        else:
            name = "text" if task == "ocr" else "answer"
            assert answers == (row["meta"][f"target_{name}"], row["meta"][f"source_{name}"])


@needs_published
@pytest.mark.slow
def test_the_known_defects_of_the_published_pairs_are_found_and_no_others() -> None:
    found: dict[str, dict[str, list[str]]] = {}
    for task in TASKS:
        kinds: dict[str, list[str]] = {}
        for defect in preflight(PUBLISHED / task, read_pairs(PUBLISHED / task)):
            kinds.setdefault(defect.kind, []).append(defect.pair_id)
        found[task] = kinds
    assert found["ocr"] == {"same_answer": [f"ocr_{number:06d}" for number in SAME_WORD]}
    assert set(found["counting"]) == {"placeholder_in_prompt"}
    assert len(found["counting"]["placeholder_in_prompt"]) == 100
    assert set(found["grounding"]) == {"boxes_overlap", "box_sizes_differ"}
    assert len(found["grounding"]["boxes_overlap"]) == 21
    assert len(found["grounding"]["box_sizes_differ"]) == 100
    # A JPEG ends with the marker FFD9; the copy that the tests read may hold one that was cut short.
    cut = [
        path.name[: len("recognition_000000")]
        for path in sorted((PUBLISHED / "recognition" / "images").glob("*.jpg"))
        if not path.read_bytes().endswith(b"\xff\xd9")
    ]
    assert found["recognition"] == ({"unreadable_image": cut} if cut else {})


def test_a_written_set_reads_back_and_its_fingerprint_follows_pairs_and_images(tmp_path: Path) -> None:
    pairs = [a_pair(0), a_pair(1, task="grounding", target_box=(1, 2, 9, 9), source_box=(1, 2, 9.5, 9), meta={"n": 1})]
    for pair in pairs:
        draw_images(tmp_path, pair)
    write_pairs(tmp_path, pairs)
    assert read_pairs(tmp_path) == pairs
    first = pairs_fingerprint(tmp_path)
    assert pairs_fingerprint(tmp_path) == first
    (tmp_path / pairs[0].target_image).unlink()
    without_image = pairs_fingerprint(tmp_path)
    write_pairs(tmp_path, pairs[::-1])
    assert len({first, without_image, pairs_fingerprint(tmp_path)}) == 3


def test_a_sound_pair_has_no_defect(tmp_path: Path) -> None:
    pair = a_pair(task="grounding", target_box=(0, 0, 10, 10), source_box=(30, 20, 40, 30))
    draw_images(tmp_path, pair)
    assert preflight(tmp_path, [pair]) == []
    assert summarise([], 1) == [NOT_SEEN]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"source_answer": " Tensor "}, ["same_answer"]),
        ({"prompt": "<image>Read the word ."}, ["placeholder_in_prompt"]),
        ({"task": "counting", "target_answer": "3", "source_answer": "four"}, ["unusable_answer"]),
        ({"task": "recognition", "target_answer": "Yes", "source_answer": "maybe"}, ["unusable_answer"]),
        ({"target_box": (0, 0, 10, 10), "source_box": (9, 9, 19, 19)}, ["boxes_overlap"]),
        ({"target_box": (0, 0, 10, 10), "source_box": (10, 0, 20, 10)}, []),  # they only touch
        ({"target_box": (0, 0, 10, 10), "source_box": (20, 0, 31, 10)}, ["box_sizes_differ"]),
        ({"target_box": (0, 0, 10, 10), "source_box": (31, 0, 41, 10)}, ["box_outside_image"]),
        ({"target_box": (-1, 0, 9, 10), "source_box": (20, 0, 30, 10)}, ["box_outside_image"]),
        ({"target_box": (5, 5, 5, 9), "source_box": (20, 5, 20, 9)}, ["empty_box"]),
    ],
)
def test_each_defect_of_answers_questions_and_boxes_is_named(
    tmp_path: Path, changes: dict[str, Any], kinds: list[str]
) -> None:
    pair = a_pair(**changes)
    draw_images(tmp_path, pair)
    assert kinds_of(tmp_path, pair) == kinds


def test_images_are_looked_at(tmp_path: Path) -> None:
    missing, damaged, unequal, same, sound = (a_pair(number) for number in range(5))
    same = replace(same, source_image=same.target_image)
    for pair in (damaged, same, sound):
        draw_images(tmp_path, pair)
    draw_images(tmp_path, unequal, ((40, 30), (30, 40)))
    whole = (tmp_path / damaged.source_image).read_bytes()
    (tmp_path / damaged.source_image).write_bytes(whole[: len(whole) // 2])
    defects = preflight(tmp_path, [missing, damaged, unequal, same, sound])
    assert [(defect.pair_id, defect.kind, defect.is_fatal) for defect in defects] == [
        ("pair-0", "unreadable_image", True),
        ("pair-1", "unreadable_image", True),
        ("pair-2", "unequal_sizes", False),
        ("pair-3", "identical_images", False),
    ]
    assert defects[0].text == "target images/0-t.png is missing; source images/0-s.png is missing"
    assert not any(str(tmp_path) in defect.text for defect in defects)


def test_an_id_that_stands_twice_leaves_both_pairs_out_and_the_summary_counts_by_kind(tmp_path: Path) -> None:
    pairs = [a_pair(0), a_pair(0, prompt="Which word ?"), a_pair(1, source_answer="tensor")]
    for pair in pairs:
        draw_images(tmp_path, pair)
    defects = preflight(tmp_path, pairs)
    assert [(defect.pair_id, defect.is_fatal) for defect in defects] == [
        ("pair-0", True),
        ("pair-0", True),
        ("pair-1", False),
    ]
    lines = summarise(defects, len(pairs))
    assert [line.split(" (")[0] for line in lines] == [
        "2 of 3 pairs: repeated_id",
        "1 of 3 pairs: same_answer",
        NOT_SEEN,
    ]
    assert "left out" in lines[0]
    assert "left out" not in lines[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "pairs.jsonl:2: not a JSON object"),
        ("[]", "pairs.jsonl:2: is a list; expected one pair"),
        ('{"id": "x", "colour": 1}', r"pairs.jsonl:2: unexpected \['colour'\]"),
        ('{"id": "x"}', "pairs.jsonl:2: .*missing"),
        ({"task": "reading"}, "task 'reading' is unknown; expected one of ocr"),
        ({"prompt": " "}, "prompt is ' '; expected a non-empty string"),
        ({"target_answer": 3}, "target_answer is 3; expected a non-empty string"),
        ({"target_image": "/etc/a.png"}, "expected a path inside the set's folder"),
        ({"source_image": "../a.png"}, "expected a path inside the set's folder"),
        ({"target_box": [1, 2, 3, 4]}, "has one box"),
        ({"target_box": [1, 2, 3], "source_box": [1, 2, 3, 4]}, "expected four numbers"),
        ({"target_box": [1, 2, 3, True], "source_box": [1, 2, 3, 4]}, "expected four numbers"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str | dict[str, Any], message: str) -> None:
    write_pairs(tmp_path, [a_pair()])
    path = tmp_path / "pairs.jsonl"
    if isinstance(line, dict):
        line = json.dumps({**json.loads(path.read_text()), "id": "pair-1", **line})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path)


def test_a_published_row_without_answers_is_refused(tmp_path: Path) -> None:
    row = {"id": "a", "task": "ocr", "target_image": "t.png", "source_image": "s.png", "prompt": "Read .", "meta": {}}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: pair 'a': target_answer is None"):
        read_pairs(tmp_path)
    (tmp_path / "data.jsonl").write_text(json.dumps({**row, "meta": None}) + "\n")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: prompt 'Read .', meta a NoneType"):
        read_pairs(tmp_path)


def test_a_folder_without_pairs_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        read_pairs(tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"holds neither pairs\.jsonl nor data\.jsonl$"):
        read_pairs(tmp_path)
    write_pairs(tmp_path / "data", [a_pair()])
    with pytest.raises(ValueError, match="its folders data do"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_pairs(tmp_path)
