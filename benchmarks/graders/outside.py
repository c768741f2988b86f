"""Judges replies with another package's grader: a JSON list of cases on standard input, rewards on standard output.

    PYTHON outside.py math-verify|trl|verl-geo3k|verl-gsm8k|lmms-eval < CASES.json

A case has `reply`, `gold`, `kind` and `letters` (those of its options; empty without options). A reward is a
number, or null where the package gives none. Runs with the interpreter of an environment that has the package, and
imports nothing of this suite.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

Case = dict[str, Any]


def _file_of(package: str, path: str) -> Any:
    """Returns a module of an installed package by its file, without importing all that the package imports."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, str(distribution(package).locate_file(path)))
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_dollars(case: Case) -> str:
    """Returns the gold as math-verify asks for mathematics: as a formula, between dollar signs."""
    return f"${case['gold']}$" if case["kind"] == "math" else str(case["gold"])


def math_verify(cases: list[Case]) -> Iterator[float | None]:
    from math_verify import parse, verify

    for case in cases:
        yield float(verify(parse(_in_dollars(case)), parse(case["reply"])))


def trl(cases: list[Case]) -> Iterator[float | None]:
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": case["reply"]}] for case in cases]
    yield from accuracy_reward(completions, [_in_dollars(case) for case in cases])


def verl_geo3k(cases: list[Case]) -> Iterator[float | None]:
    judge = _file_of("verl", "verl/utils/reward_score/geo3k.py").compute_score
    for case in cases:
        yield float(judge(case["reply"], case["gold"]))


def verl_gsm8k(cases: list[Case]) -> Iterator[float | None]:
    judge = _file_of("verl", "verl/utils/reward_score/gsm8k.py").compute_score
    for case in cases:
        yield float(judge(case["reply"], case["gold"]))


def lmms_eval(cases: list[Case]) -> Iterator[float | None]:
    """The reader that its multiple-choice tasks share; without options it has nothing to read."""
    read = _file_of("lmms-eval", "lmms_eval/tasks/_task_utils/mcq_extract.py").extract_mcq_answer
    for case in cases:
        if case["letters"]:
            yield float(read(case["reply"], choices=list(case["letters"])) == case["gold"])
        else:
            yield None


JUDGES: dict[str, tuple[str, Callable[[list[Case]], Iterator[float | None]]]] = {
    "math-verify": ("math-verify", math_verify),
    "trl": ("trl", trl),
    "verl-geo3k": ("verl", verl_geo3k),
    "verl-gsm8k": ("verl", verl_gsm8k),
    "lmms-eval": ("lmms-eval", lmms_eval),
}
"""Name -> its package, and the function that judges."""


def main() -> None:
    package, judge = JUDGES[sys.argv[1]]
    rewards = list(judge(json.load(sys.stdin)))
    print(json.dumps({"package": package, "version": version(package), "rewards": rewards}))


if __name__ == "__main__":
    main()
