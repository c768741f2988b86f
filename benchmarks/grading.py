"""How fast is the grader, and does it agree with the labels? MATH-500-like replies, and a corpus labelled by hand.

    OMP_NUM_THREADS=1 python -m benchmarks.grading
    python -m benchmarks.grading --data ../shared/data/math500_test.jsonl

The replies are the published solutions of MATH-500 (several hundred characters each), each judged against its own gold
and, with the last answer replaced, against the gold of the next problem. Those that a string or number rule decides are
graded one after another in one process per core, nothing remembered between rounds; those that math-verify decides are
asked side by side from threads, as rewards and evaluations do. Starting the judges is timed apart. The corpus is
`tests/eval/grading/corpus.jsonl`; a case agrees where verdict and rule are those of its label.

Writes `benchmarks/results/grading.json`.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from eval.grading import grade
from eval.grading.answers import find_answer
from eval.grading.expressions import plainly_equal
from eval.grading.latex import plain
from eval.grading.mathematics import MAX_JUDGES, equal_expressions
from eval.grading.quantities import parse_quantity
from eval.grading.structure import parts_in
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "grading.json"
DATA = REPOSITORY_ROOT.parent / "shared" / "data" / "math500_test.jsonl"
CORPUS = REPOSITORY_ROOT / "tests" / "eval" / "grading" / "corpus.jsonl"
MIN_PLAIN_PER_S, MIN_MATHEMATICS_PER_S = 2000, 40
"""Targets for two cores."""

Question = tuple[str, str]
"""A reply and its gold."""


def read_questions(path: Path) -> tuple[list[Question], list[Question]]:
    """Returns the replies that a string or number rule decides, and those that math-verify decides."""
    if not path.is_file():
        raise ValueError(f"--data {path} does not exist; expected the JSONL file of MATH-500")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    questions = [(row["solution"], row["answer"]) for row in rows]
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        head = row["solution"].rpartition("\\boxed{")[0]
        questions.append((f"{head}\\boxed{{{row['answer']}}}$.", other["answer"]))
    plainly: list[Question] = []
    mathematics: list[Question] = []
    for reply, gold in questions:
        found = find_answer(reply, "math")
        assert found is not None, reply
        (mathematics if plainly_equal(found[0], gold) is None else plainly).append((reply, gold))
    return plainly, mathematics


def grade_all(questions: Sequence[Question]) -> tuple[float, dict[str, int]]:
    """Grades replies sequentially; returns the seconds and the verdicts."""
    plain.cache_clear()
    parse_quantity.cache_clear()
    parts_in.cache_clear()
    begin = time.perf_counter()
    verdicts = Counter(grade(reply, gold, "math").status for reply, gold in questions)
    return time.perf_counter() - begin, dict(verdicts)


def rate_of_plain(questions: Sequence[Question], *, num_processes: int, num_rounds: int) -> dict[str, Any]:
    """Returns the total replies per second of all processes, each of which grades all replies."""
    with ProcessPoolExecutor(num_processes) as pool:
        list(pool.map(grade_all, [questions[:1]] * num_processes))
        rates = []
        for _ in range(num_rounds):
            done = list(pool.map(grade_all, [questions] * num_processes))
            rates.append(sum(len(questions) / seconds for seconds, _ in done))
    return {"num_replies": len(questions), "verdicts": done[0][1], **_spread(rates)}


def rate_of_mathematics(questions: Sequence[Question], *, num_rounds: int) -> dict[str, Any]:
    """Returns the replies per second judged for one process, and the start-up time of the judges."""
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        begin = time.perf_counter()
        list(pool.map(equal_expressions, ["1+x"] * MAX_JUDGES, ["x+1"] * MAX_JUDGES))
        start_s = time.perf_counter() - begin
        rates, slowest_s, cpu_s = [], 0.0, _cpu_of_judges_s()
        for _ in range(num_rounds):
            begin = time.perf_counter()
            done = list(pool.map(_timed, questions))
            rates.append(len(questions) / (time.perf_counter() - begin))
            slowest_s = max(slowest_s, *(seconds for seconds, _ in done))
        cpu_s = _cpu_of_judges_s() - cpu_s
    verdicts = dict(Counter(status for _, status in done))
    return {
        "num_replies": len(questions),
        "verdicts": verdicts,
        "num_judges": MAX_JUDGES,
        "start_s": start_s,
        "slowest_s": slowest_s,
        "cpu_s_per_reply": cpu_s / (num_rounds * len(questions)),
        **_spread(rates),
    }


def _cpu_of_judges_s() -> float:
    """Returns the judges' processor time so far, from which their rate on idle cores follows."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return float(sum(used.user + used.system for used in times))


def _timed(question: Question) -> tuple[float, str]:
    begin = time.perf_counter()
    status = grade(*question, "math").status
    return time.perf_counter() - begin, status


def _spread(rates: Sequence[float]) -> dict[str, Any]:
    return {
        "num_rounds": len(rates),
        "per_s": float(np.median(rates)),
        "per_s_low": min(rates),
        "per_s_high": max(rates),
    }


def agreement(path: Path) -> list[dict[str, Any]]:
    """Returns a row per kind and rule: cases of the corpus, and how many get their label's verdict by its rule."""
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        rule = case["rule"].partition(";")[0]
        row = rows.setdefault(
            (case["kind"], rule), {"kind": case["kind"], "rule": rule, "num_cases": 0, "num_agreed": 0}
        )
        verdict = grade(case["response"], case["gold"], case["kind"], case.get("choices"), case.get("precision"))
        row["num_cases"] += 1
        row["num_agreed"] += (verdict.status, verdict.rule) == (case["status"], case["rule"])
    return [rows[key] for key in sorted(rows)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--data", type=Path, default=DATA, help="JSONL file of MATH-500")
    parser.add_argument(
        "--num-processes", type=int, default=2, help="number of processes for the string and number rules"
    )
    parser.add_argument("--num-rounds", type=int, default=5, help="number of times that everything is graded")
    arguments = parser.parse_args(argv)
    plainly, mathematics = read_questions(arguments.data)
    rates = {
        "string or number rule": rate_of_plain(
            plainly, num_processes=arguments.num_processes, num_rounds=arguments.num_rounds
        ),
        "math-verify": rate_of_mathematics(mathematics, num_rounds=arguments.num_rounds),
    }
    rows = agreement(CORPUS)
    result = {
        "command": "python -m benchmarks.grading",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "load_average": os.getloadavg()[0],
        "num_processes": arguments.num_processes,
        "asked_per_s": {"string or number rule": MIN_PLAIN_PER_S, "math-verify": MIN_MATHEMATICS_PER_S},
        "rates": rates,
        "agreement": rows,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    for name, rate in rates.items():
        print(
            f"{name}: {rate['per_s']:,.0f} replies a second [{rate['per_s_low']:,.0f}, {rate['per_s_high']:,.0f}], "
            f"{rate['num_replies']} different ones"
        )
    cpu_s = rates["math-verify"]["cpu_s_per_reply"]
    print(f"math-verify: {1e3 * cpu_s:.0f} ms of processor time a reply, {2 / cpu_s:.0f} a second on two idle cores")
    num_agreed, num_cases = (sum(row[name] for row in rows) for name in ("num_agreed", "num_cases"))
    print(f"labelled corpus: {num_agreed} of {num_cases} cases agree")


if __name__ == "__main__":
    run_command(main)
