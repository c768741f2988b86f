import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tracking.command import REPOSITORY_ROOT
from tracking.records import RecordLog, read_finished, read_records


def write_log(path: Path, *keys: str) -> None:
    with RecordLog(path) as log:
        for key in keys:
            log.append({"key": key, "value": len(key)})


def test_reopened_log_knows_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_log(path, "a", "bb")
    with RecordLog(path) as log:
        assert "a" in log and "bb" in log and "c" not in log
        log.append({"key": "c", "value": 3})
        assert len(log) == 3
    assert [record["key"] for record in read_records(path)] == ["a", "bb", "c"]


def test_record_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log:
        log.append({"key": "a"}, {"key": "b"})
        assert [record["key"] for record in read_records(path)] == ["a", "b"]


def test_torn_last_line_is_dropped_and_can_be_redone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_log(path, "a", "b", "c")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with RecordLog(path) as log:
        assert "b" in log and "c" not in log
        log.append({"key": "c", "value": 1})
    assert path.read_bytes() == whole


def test_line_torn_inside_a_character_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log:
        log.append({"key": "a"})
        log.append({"key": "b", "response": "日本"})
    path.write_bytes(path.read_bytes()[:-4])
    with RecordLog(path) as log:
        assert [record["key"] for record in log] == ["a"]


def test_key_that_stands_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "a"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"records\.jsonl:3: key 'a' appears twice"):
        RecordLog(path)


def test_appending_a_key_again_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log:
        log.append({"key": "a", "value": 1})
        with pytest.raises(AssertionError, match="'a' was written already"):
            log.append({"key": "a", "value": 2})
    assert read_records(path) == [{"key": "a", "value": 1}]


def test_keep_drops_records_on_disk_and_lets_them_be_redone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_log(path, "a", "b", "c")
    with RecordLog(path) as log:
        log.keep(lambda record: record["key"] != "b")
        assert [record["key"] for record in read_records(path)] == ["a", "c"]
        log.append({"key": "b", "value": 7})
    assert [(record["key"], record["value"]) for record in read_records(path)] == [("a", 1), ("c", 1), ("b", 7)]


def test_killed_writer_loses_no_finished_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    script = (
        "import sys, time; from pathlib import Path; from tracking.records import RecordLog\n"
        "log = RecordLog(Path(sys.argv[1]))\n"
        "[log.append({'key': str(n)}) for n in range(50)]\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.kill()
    with RecordLog(path) as log:
        assert [record["key"] for record in log] == [str(n) for n in range(50)]


def test_any_text_a_model_writes_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record = {
        "key": "a",
        "response": 'line\nbreak \\ "quote" \x00\x1f\t日本 🎲\ufffd\u2028\x85\r',
        "score": None,
        "rate": 0.1,
    }
    with RecordLog(path) as log:
        log.append(record)
    with RecordLog(path) as log:
        assert list(log) == [record]
    assert read_records(path) == [record]


def test_reading_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"records\.jsonl does not exist; expected the records of a finished command"):
        read_records(tmp_path / "records.jsonl")


def test_reading_a_torn_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"key": "a"}) + '\n{"key": "b', encoding="utf-8")
    with pytest.raises(ValueError, match=r"records\.jsonl:2: torn record"):
        read_records(path)


@pytest.mark.parametrize("line", [b"[1]", b'{"key": "a"', b'{"key": "\xff"}', b"7"])
@pytest.mark.parametrize("read", [read_records, read_finished, RecordLog])
def test_a_line_that_is_no_record_is_named(read: Callable[[Path], object], line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"key": "first"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:2: not a record \(.+\); remove the line"):
        read(path)


def test_lines_of_ones_own_need_neither_key_nor_last_line_break(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('{"id": "a", "reply": "2"}\n{"id": "b", "reply": "3"}')
    assert [record["id"] for record in read_records(path)] == ["a", "b"]
    for read in (read_finished, RecordLog):
        with pytest.raises(ValueError, match=r"replies\.jsonl:1: not a record \('key' is missing\)"):
            read(path)
