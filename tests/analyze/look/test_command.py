"""A look at a study's evaluations: what is read, in which order, what is written, what is refused, and resuming."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analyze.look.command import main
from analyze.look.plan import read_plan
from analyze.look.records import read_reading
from eval.statistics.pairing import parse_entry
from tracking.records import Record, RecordLog, read_records
from tracking.tables import read_table

pytestmark = pytest.mark.slow
LIMIT = 5
NUM_LAYERS = 3


@pytest.fixture
def models(pocket_study: Path) -> list[str]:
    return [f"sft={pocket_study / 'eval' / 'sft'}", f"full@0={pocket_study / 'eval' / 'full-seed0'}"]


@pytest.fixture(scope="module")
def looked(pocket_study: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    models = [f"sft={pocket_study / 'eval' / 'sft'}", f"full@0={pocket_study / 'eval' / 'full-seed0'}"]
    return (
        made_once(
            "look",
            lambda folder: main([*models, "--output-dir", str(folder / "out"), "--limit", str(LIMIT), "--rollout"]),
        )
        / "out"
    )


def test_every_model_reads_every_reply_and_flipped_prompts_come_first(looked: Path, models: list[str]) -> None:
    plan = read_plan([parse_entry(text) for text in models], tasks=(), authors=(), limit=LIMIT)
    flipped = [look.flipped for look in plan.looks]
    assert flipped == sorted(flipped, reverse=True)
    assert len({look.problem.key for look in plan.looks}) == LIMIT == plan.num_prompts
    for look in plan.looks:
        assert look.flipped == ((look.statuses["sft"] == "correct") != (look.statuses["full@0"] == "correct"))
    records = read_records(looked / "records.jsonl")
    read = {(look.key, model) for look in plan.looks if look.reply.strip() for model in ("sft", "full@0")}
    assert {(record["look"], record["model"]) for record in records} == read
    pictures, tokens = read_table(looked / "pictures.csv"), read_table(looked / "tokens.csv")
    assert len(pictures) == len(records) * 4
    assert (pictures["mass"].between(0, 1)).all() and (pictures["border_share"].between(0, 1.0001)).all()
    assert len(tokens) == sum(len(record["texts"]) for record in records if record["model"] == "sft")
    assert (tokens[["sft", "full@0"]] <= 0).all().all()


def test_the_page_holds_every_map_that_was_read(looked: Path) -> None:
    page = (looked / "look.html").read_text()
    cards = [json.loads(text) for text in re.findall(r'<script type="application/json">(.+?)</script>', page)]
    records = {record["key"]: record for record in read_records(looked / "records.jsonl")}
    assert len(cards) == len({record["look"] for record in records.values()})
    for card in cards:
        num_cells = sum(rows * columns for rows, columns in card["grids"])
        for own in card["models"].values():
            assert len(own["scales"]) == 4 + NUM_LAYERS + 1 + len(card["positions"])
            assert len(own["bytes"]) == 4 * -(-num_cells * len(own["scales"]) // 3)
        assert all(picture.startswith("data:image/jpeg") for picture in card["pictures"])
    assert page.count("data:image/jpeg") == len(cards), "every picture is stored once per prompt and reply"
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", page), "the page needs no other file"


def test_a_killed_look_continues_with_what_was_not_read(
    looked: Path, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*models, "--output-dir", str(tmp_path / "out"), "--limit", str(LIMIT), "--rollout"]
    append, count = RecordLog.append, 0

    def killed(self: RecordLog, record: Record) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        append(self, record)

    monkeypatch.setattr(RecordLog, "append", killed)  # within a batch
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    before = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(before) == 2 and not (tmp_path / "out" / "look.html").exists()
    main(arguments)
    assert (tmp_path / "out" / "records.jsonl").read_text().splitlines()[:2] == before
    for name in ("pictures.csv", "tokens.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (looked / name).read_bytes()


def test_a_third_model_reads_the_same_replies(pocket_study: Path, models: list[str], tmp_path: Path) -> None:
    more = [*models, f"freeze-mid@0={pocket_study / 'eval' / 'freeze-mid-seed0'}"]
    out = tmp_path / "out"
    main(
        [
            *more,
            "--output-dir",
            str(out),
            "--limit",
            "1",
            "--authors",
            "sft",
            "--drop-sinks",
            "--heads",
            "--show-heads",
            "2.1",
        ]
    )
    records = read_records(out / "records.jsonl")
    assert [record["model"] for record in records] == ["sft", "full@0", "freeze-mid@0"]
    assert {tuple(record["texts"]) for record in records} == {tuple(records[0]["texts"])}
    assert all("heads" in record for record in records)
    page = (out / "look.html").read_text()
    assert '<option value="7">layer 2, head 1</option>' in page
    (card,) = [json.loads(text) for text in re.findall(r'<script type="application/json">(.+?)</script>', page)]
    packed, cells = card["models"]["full@0"], sum(rows * columns for rows, columns in card["grids"])
    found = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8)[7 * cells : 8 * cells] * packed["scales"][7]
    head = read_reading(records[1]).heads[2, 1]  # type: ignore[index]
    assert np.abs(found / 255 - head).max() <= head.max() / 255
    assert np.isfinite(read_table(out / "pictures.csv")["mass"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--authors", "ful"], "--authors 'ful' is none of sft, full@0; did you mean 'full@0'"),
        (["--limit", "0"], "limit"),
        (["--dtype", "float31"], "dtype 'float31' is unknown"),
        (["--show-heads", "2.1"], "--show-heads needs the maps of the heads; add --heads"),
        (["--heads", "--show-heads", "6.0"], "--show-heads 6.0: expected a layer of 0 to 2 and a head of 0 to"),
        (["--heads", "--show-heads", "mid"], "expected LAYER.HEAD"),
        (["--pairs", "."], "pairs"),
        (["--cuts", "1", "9"], r"cuts \[1, 9\] do not divide"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    models: list[str], change: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        main([*models, "--output-dir", str(tmp_path / "out"), *change])
    assert not (tmp_path / "out").exists()
