"""Samples files of tasks whose lines look otherwise: several replies, mappings as metrics, golds in lists."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.harnesses.kinds import settle
from eval.harnesses.replies import Measure, Source
from eval.harnesses.sample_files import read_lm_eval, read_lmms_eval


def lm_line(doc_id: int, responses: list[str], **further: Any) -> dict[str, Any]:
    """A line as lm-evaluation-harness 0.4.13 writes it: `evaluator.evaluate` and `save_results_samples`."""
    return {
        "doc_id": doc_id, "doc": {"question": "2 + 2?"}, "target": "4", "filter": "none", "metrics": ["exact_match"],
        "arguments": {"gen_args_0": {"arg_0": "Q: 2 + 2?", "arg_1": {"max_gen_toks": 9}}}, "resps": [responses],
        "filtered_resps": responses[:1], "exact_match": 1.0, **further,
    }  # fmt: skip


def lmms_line(doc_id: int, response: Any, **metrics: Any) -> dict[str, Any]:
    """A line as lmms-eval 0.7.3 writes it: the document and, if nothing was filtered, `resps` are left out."""
    return {
        "doc_id": doc_id,
        "target": "A",
        "filtered_resps": response,
        "token_counts": [None],
        "input": "?",
        **metrics,
    }


def read(tmp_path: Path, name: str, *rows: dict[str, Any]) -> Source:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_lm_eval(path) if name.startswith("samples_") else read_lmms_eval(path)


LM, LMMS = "samples_sums_2026-01-01T00-00-00.5.jsonl", "20260101_000000_samples_mmmu_val.jsonl"


def test_several_replies_are_samples_without_a_verdict_of_their_own(tmp_path: Path) -> None:
    source = read(tmp_path, LM, lm_line(0, ["4", "5"]), lm_line(1, ["4", "4"]))
    assert [(one.id, one.sample, one.response) for one in source.replies] == [
        ("0", 0, "4"), ("0", 1, "5"), ("1", 0, "4"), ("1", 1, "4")
    ]  # fmt: skip
    assert all(not one.measures for one in source.replies)
    assert source.max_new_tokens == 9
    assert {one.task for one in source.replies} == {"sums"}
    nested = read(tmp_path, LMMS, lmms_line(0, ["A", "B"], resps=[["A"], ["B"]], acc=1.0))
    assert [one.response for one in nested.replies] == ["A", "B"]


def test_the_reply_is_what_stood_before_the_filter(tmp_path: Path) -> None:
    source = read(tmp_path, LMMS, lmms_line(0, "A", resps=["So it is A."], exact_match=1.0))
    assert source.replies[0].response == "So it is A."
    assert source.replies[0].measures == {"exact_match": Measure(score=1.0, answer="A")}


@pytest.mark.parametrize(
    ("value", "measure"),
    [
        ({"question_type": "multiple-choice", "answer": "A", "parsed_pred": ["A"]}, Measure(score=1.0, answer="A")),
        ({"question_type": "multiple-choice", "answer": "A", "parsed_pred": "B"}, Measure(score=0.0, answer="B")),
        ({"true_false": True, "extraction": "7", "prediction": "7.0"}, Measure(score=1.0, answer="7")),
        ({"score": 0.5, "pred": "x"}, Measure(score=0.5, answer="x")),
        (True, Measure(score=1.0, answer=None)),
    ],
)
def test_verdicts_in_mappings_are_read(tmp_path: Path, value: Any, measure: Measure) -> None:
    """As mmmu_acc, mathvista's llm_as_judge_eval, pope and chartqa of lmms-eval keep them."""
    source = read(tmp_path, LMMS, lmms_line(0, "The reply.", metric=value))
    assert source.replies[0].measures == {"metric": measure}


@pytest.mark.parametrize(
    "value", [{"question_type": "open", "answer": "7", "parsed_pred": "7"}, {"pred_answer": "A"}, 17.3, [1.0], None]
)
def test_what_only_an_aggregation_judges_is_no_verdict(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path, LMMS, lmms_line(0, "The reply.", metric=value)).replies[0].measures == {}


def test_a_score_that_is_repeated_by_category_is_taken_once(tmp_path: Path) -> None:
    """As mmstar: `average` in every row, and the same score under the row's category."""
    rows = [
        lmms_line(0, "A", average={"score": 1.0}, math={"score": 1.0}),
        lmms_line(1, "B", average={"score": 0.0}, logic={"score": 0.0}),
    ]
    assert [set(one.measures) for one in read(tmp_path, LMMS, *rows).replies] == [{"average"}, {"average"}]
    rows = [lmms_line(0, "A", perception={"score": 1.0}), lmms_line(1, "B", cognition={"score": 0.0})]
    assert [set(one.measures) for one in read(tmp_path, LMMS, *rows).replies] == [{"perception"}, {"cognition"}]


def test_options_in_a_mapping_and_a_list_as_gold_are_read(tmp_path: Path) -> None:
    source = read(tmp_path, LMMS, lmms_line(0, "2", metric={"choices": ["1", "2"], "answer_type": "text"}, target="2"),
                  lmms_line(1, "[0, 4]", target="[0, 4]", metric={"choices": None, "answer_type": "list"}))  # fmt: skip
    settled, _ = settle(source.replies, {})
    assert [(one.kind, one.gold) for one in settled] == [("choice", "2"), ("list", "[0, 4]")]
    assert read(tmp_path, LMMS, lmms_line(0, "a", target="['a', 'b', 'a']")).replies[0].golds == ("a", "b")


def test_pairs_of_likelihoods_are_no_replies(tmp_path: Path) -> None:
    both = [["-1.5", "True"], ["-2.0", "False"]]
    source = read(tmp_path, LMMS, lmms_line(0, "A"), lmms_line(1, both, acc=1.0))
    assert [one.id for one in source.replies] == ["0"]
    assert source.left_out.total() == 1


def test_a_reply_to_a_prompt_that_opens_its_thoughts_begins_with_them(tmp_path: Path) -> None:
    asked = {"gen_args_0": {"arg_0": "2 + 2?<|assistant|>\n<think>\n", "arg_1": {}}}
    rows = [lm_line(0, ["It is 4.</think>4"], arguments=asked), lm_line(1, ["<think>5</think>5"], arguments=asked)]
    assert [one.response for one in read(tmp_path, LM, *rows).replies] == [
        "<think>It is 4.</think>4",
        "<think>5</think>5",
    ]


def test_two_replies_that_say_true_are_replies(tmp_path: Path) -> None:
    source = read(tmp_path, LM, lm_line(0, ["It is true.", "True"]))
    assert [one.response for one in source.replies] == ["It is true.", "True"]


def test_lists_of_older_versions_are_read(tmp_path: Path) -> None:
    old = {"doc": {}, "arguments": [["Q: 2 + 2?", {"max_gen_toks": 9}]], "filter": None, "metrics": None}
    row = {key: value for key, value in lm_line(0, ["4"], **old).items() if value is not None}
    source = read(tmp_path, LM, row)
    assert (source.replies[0].question, source.max_new_tokens) == ("Q: 2 + 2?", 9)
    assert source.replies[0].measures == {"exact_match": Measure(score=1.0, answer="4")}
    asked = {"arguments": [["2 + 2?", " 4"], ["2 + 2?", " 5"]], "resps": [[["-1.5", "False"]], [["-2.5", "False"]]]}
    with pytest.raises(ValueError, match="scored by log-likelihoods"):
        read(tmp_path, LM, lm_line(0, [], **asked))


def test_a_damaged_results_file_beside_the_samples_is_told(tmp_path: Path) -> None:
    (tmp_path / "results_2026-01-01T00-00-00.5.json").write_text('{"model_name": "m')
    with pytest.raises(ValueError, match=r"results_2026.*: not JSON"):
        read(tmp_path, LM, lm_line(0, ["4"]))
