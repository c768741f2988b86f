"""The grader against cases labelled by hand: every kind, every rule, every fault of the released grader."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from eval.grading import CORRECT, INCORRECT, KINDS, UNSCORED, grade
from eval.grading.answers import RULES

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
]
STATUS = {
    "same": CORRECT,
    "equivalent": CORRECT,
    "near-miss": INCORRECT,
    "wrong": INCORRECT,
    "unscored": UNSCORED,
}
"""What a case is -> its verdict."""


def test_the_corpus_is_large_enough_and_has_every_kind_and_rule() -> None:
    sorts = Counter(case["sort"] for case in CASES)
    assert len(CASES) >= 300
    assert sorts["equivalent"] >= 100
    assert sorts["near-miss"] >= 100
    assert len({json.dumps(case, sort_keys=True) for case in CASES}) == len(CASES)
    assert {case["kind"] for case in CASES} == set(KINDS)
    assert {case["rule"] for case in CASES} >= set(RULES)
    assert sum("fault 6" in case.get("why", "") for case in CASES) >= 8
    for case in CASES:
        assert case["status"] == STATUS[case["sort"]], case


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_case_is_judged_as_it_is_labelled(kind: str) -> None:
    agreed: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for case in (case for case in CASES if case["kind"] == kind):
        verdict = grade(case["response"], case["gold"], kind, case.get("choices"), case.get("precision"))
        same = (verdict.status, verdict.rule) == (case["status"], case["rule"])
        agreed[case["rule"]].append(same)
        if not same:
            wrong.append((case["response"], case["gold"], verdict))
        if case["sort"] == "equivalent":
            assert verdict.extracted != case["gold"], case
    report = "; ".join(f"{rule}: {sum(own)} of {len(own)}" for rule, own in agreed.items())
    assert not wrong, f"{report}\n" + "\n".join(map(str, wrong))
