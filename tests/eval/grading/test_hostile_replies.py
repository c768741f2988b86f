"""Random and hostile replies: each is judged, in bounded time, and nothing crashes."""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from eval.grading import KINDS, Verdict, grade
from eval.grading.mathematics import LIMIT_S, MARGIN_S, MAX_JUDGES

GOLDS = {
    "number": "5",
    "math": r"\frac{1}{2}",
    "choice": "12",
    "yes_no": "yes",
    "box": "1,2,30,40",
    "list": "1, 2",
    "text": "red",
}
PIECES = (
    "\\frac", "{", "}", "(", ")", "[", "]", "^", "_", "\\boxed{", "\\sqrt", "\\left", "\\right", "$", "$$", "\\(",
    "\\]", "\\text{", "and", "or", "the answer is", "Answer:", "####", "A:", "<answer>", "</answer>", "<think>",
    "</think>",
    "1", "2", "9", "0", ".", ",", "-", "+", "*", "/", "=", "<", "x", "i", "\\pi", "\\infty", "\\cup", "%", "°",
    "\n", " ",
    "\x00", "\u202e", "\u200f", "שלום", "مرحبا", "٣", "½", "²", "😀", "\\\\", "&",
    "\\begin{pmatrix}", "\\end{pmatrix}",
    "!", "e", "10^", "yes", "no", "B", "(B)", "not", "\u0301", "\ud800", "\\int", "\\sum_{n=1}^{", "|", "\\log",
)  # fmt: skip
REPEATED = (
    "{", "}", "9", "(", "1,", "a ", "the answer is ", " ", "-", "yes no ", "\\boxed{", "not B ", "$", "√", "**",
    "[1,2,3,4]", "\x00", "\u202eabc", "<answer>", "####\n", "\\left(", "\\text{",
)  # fmt: skip
WRAPPINGS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: f"<answer>{text}</answer>",
    lambda text: f"\\boxed{{{text}}}",
    lambda text: f"The answer is {text}.",
    lambda text: f"#### {text}",
)
MAX_CHARS = 100_000


def draw_reply(rng: random.Random) -> str:
    """Returns pieces of replies in any order, one piece very often, or something deeply nested."""
    sort = rng.random()
    if sort < 0.6:
        text = "".join(rng.choice(PIECES) for _ in range(rng.choice((1, 3, 8, 20, 60))))
    elif sort < 0.9:
        piece = rng.choice(REPEATED)
        text = piece * (int(10 ** rng.uniform(0, 5)) // len(piece))
    else:
        opening, closing = rng.choice((("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("(", ")"), ("2^{", "}")))
        text = opening * rng.randint(1, 18) + "2" + closing * rng.randint(0, 18)
        text = (
            "1e99999999" if text.startswith("2^{2^{2^{2^{") else text
        )  # towers that never end are tested by themselves
    return rng.choice(WRAPPINGS)(text[:MAX_CHARS])


def judge(kind: str, reply: str) -> tuple[float, Verdict]:
    begin = time.monotonic()
    verdict = grade(reply, GOLDS[kind], kind, ("10", "12", "x", "B") if kind == "choice" else None)
    return time.monotonic() - begin, verdict


def judge_many(num_replies: int, seed: int, *, math_every: int) -> list[tuple[float, Verdict]]:
    rng = random.Random(seed)
    others = [kind for kind in KINDS if kind != "math"]
    kinds = ["math" if number % math_every == 0 else others[number % len(others)] for number in range(num_replies)]
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        return list(pool.map(judge, kinds, [draw_reply(rng) for _ in kinds]))


@pytest.mark.slow
def test_hostile_replies_are_judged_and_seldom_right() -> None:
    results = judge_many(1_500, seed=0, math_every=20)
    counts = Counter(verdict.status for _, verdict in results)
    assert counts["incorrect"] > 0.9 * len(results), counts
    assert max(seconds for seconds, _ in results) < LIMIT_S + 2 * MARGIN_S


@pytest.mark.slow
def test_ten_thousand_hostile_replies_neither_hang_nor_crash() -> None:
    results = judge_many(10_000, seed=1, math_every=20)
    counts = Counter(verdict.status for _, verdict in results)
    assert counts["incorrect"] > 9_000, counts
    assert max(seconds for seconds, _ in results) < LIMIT_S + 2 * MARGIN_S


@pytest.mark.parametrize(
    "answer", ["10^{999999999}", "((((" * 90, "\\sqrt{" * 60 + "2" + "}" * 60, "9" * 400, "-" * 400]
)
def test_huge_and_deep_answers_are_wrong_for_a_number_at_once(answer: str) -> None:
    begin = time.monotonic()
    for kind in ("number", "choice", "list", "text"):
        assert grade(f"<answer>{answer}</answer>", GOLDS[kind], kind).status == "incorrect" or kind == "choice"
    assert time.monotonic() - begin < 1
