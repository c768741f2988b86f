"""Do the sentences of a comparison say what its rows say, with signs, intervals and n, and count many models?"""

from typing import Any

import pandas as pd

from eval.compare.sentences import answers, draw_differences, with_labels

ROW = {
    "task": "test", "ability": "vision", "metric": "accuracy", "arm": "full", "against": "sft", "seed": "pooled",
    "n": 500, "difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.01,
}  # fmt: skip
SAME: dict[str, Any] = {"difference": 0.01, "low": -0.03, "high": 0.05, "p_holm": 0.6}


def said(*changes: dict[str, Any]) -> list[str]:
    return answers(with_labels(pd.DataFrame([{**ROW, **change} for change in changes])), "sft")


def test_better_worse_and_undecided_abilities_are_told_apart() -> None:
    worse = {"ability": "reasoning", "difference": -0.04, "low": -0.066, "high": -0.016, "n": 400}
    assert said({}, worse, {"ability": "ocr", **SAME}) == [
        "full − sft: significantly better on vision (+10.0 points [+5.0, +15.0]); significantly worse on reasoning "
        "(−4.0 points [−6.6, −1.6]); no significant difference on ocr (+1.0 points [−3.0, +5.0]); n = 400 to 500."
    ]


def test_the_papers_definition_is_named_where_its_verdict_differs() -> None:
    defined = {"metric": "ability", **SAME}
    by_definition = "By the paper’s definition of the abilities: +1.0 points [−3.0, +5.0] on vision (not significant)."
    assert said({}, defined)[0].endswith(by_definition)
    assert "definition" not in said({}, {**defined, "p_holm": 0.01})[0]


def test_many_models_are_counted() -> None:
    arms = [{"arm": f"arm{number}", **({} if number < 2 else SAME)} for number in range(4)]
    assert said(*arms) == ["vision (n = 500), compared with sft: of 4 models 2 are significantly better and 0 worse."]


def test_tasks_are_kept_apart_in_sentences_and_figures() -> None:
    rows = with_labels(pd.DataFrame([ROW, {**ROW, "task": "mathvista", **SAME}]))
    assert "better on vision (test) (+10.0" in answers(rows, "sft")[0]
    drawing = draw_differences(rows, "sft")
    assert ">vision (test)<" in drawing and ">vision (mathvista)<" in drawing
    assert drawing.count("<circle") == 2 and drawing.count('fill="#fff"') == 1
