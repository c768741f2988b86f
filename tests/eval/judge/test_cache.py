"""The cache of replies: persistent over runs and writers, keyed by the full request."""

import json
from pathlib import Path

from eval.judge.cache import ReplyCache, content_hash


def test_replies_are_kept_over_runs_and_over_writers_and_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    first, second = ReplyCache(path), ReplyCache(path)
    first.put("a", "one\u2028two", model="m")
    second.put("b", "three")
    assert (first.get("b"), second.get("a"), first.get("c")) == ("three", "one\u2028two", None)
    first.put("a", "one\u2028two")
    with path.open("a") as file:
        file.write('{"key": "c", "reply": "to')
    third = ReplyCache(path)
    assert (third.get("a"), third.get("b"), third.get("c")) == ("one\u2028two", "three", None)
    third.put("d", "four")
    assert ReplyCache(path).get("d") == "four"
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [row["key"] for row in whole] == ["a", "b", "a", "d"]


def test_a_hash_tells_apart_what_is_cut_in_other_places() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc") != content_hash("abc")
    assert content_hash("ab", b"c") == content_hash("ab", "c")
