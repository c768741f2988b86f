"""One plain spelling: different spellings of an answer become equal, different answers do not."""

import itertools

import pytest

from eval.grading.latex import plain

SAME = [
    [r"\frac{4}{3}", r"\frac43", r"\dfrac 43", r"$\tfrac{4}{3}$", r"\frac 4 3", "4/3", r"\(\frac{4}{3}\).", "**4/3**"],
    [r"11\sqrt{2}", r"11\sqrt2", r"11 \sqrt{2}", "11√2", r"11\cdot\sqrt{2}", r"11*\sqrt{2}", "11√(2)"],
    [r"90^\circ", r"90^{\circ}", "90°", r"90 ^ \circ", r"90*\degree"],
    [r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", "(3, π/2)".replace("π/2", r"\frac{π}{2}")],
    [r"x^2+2x+1", "x^{2} + 2x + 1", "x²+2x+1"],
    ["52_8", "52_{8}"],
    [r"10080", r"10,\!080", "10{,}080"],
    [r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)", "(−∞,2)∪(3,∞)"],
    [r"\text{east}", "east", r"\mbox{ east }"],
    [r"1\pm\sqrt{19}", r"1 \pm \sqrt{19}", "1±√19"],
    [r"\{1,2\}", r"\left\{ 1, 2 \right\}", r"\lbrace 1, 2\rbrace"],
    [r"\boxed{p-q}", "p - q", "$p-q$"],
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_spellings_of_the_same_answer_become_equal(spellings: list[str]) -> None:
    assert len({plain(text) for text in spellings}) == 1, [plain(text) for text in spellings]


def test_different_answers_stay_different() -> None:
    firsts = [plain(spellings[0]) for spellings in SAME]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize(
    "texts",
    [
        ["1,234", "1, 234"],
        ["2 3", "23"],
        ["x^{2}3", "x^{23}"],
        [r"\sqrt{2}3", r"\sqrt{23}"],
        [r"1\frac{4}{5}", r"\frac{14}{5}"],
        [r"2\frac{1}{2}", "21/2"],
        ["x", "X"],
        ["(1,2)", "[1,2]", "(2,1)", r"\{1,2\}", "1,2"],
        ["3*4", "34"],
        [r"\cot x", r"\cotx"],
        ["5 m/s", "5 m"],
        ["a b", "ab"],
        [r"\$5", r"5\%", "5"],
    ],
    ids=str,
)
def test_no_meaning_is_lost(texts: list[str]) -> None:
    for first, second in itertools.combinations(texts, 2):
        assert plain(first) != plain(second)


@pytest.mark.parametrize(
    "text", ["", " ", "$", "$$", "$$$$", "\\", "{", "}{", "\\boxed{", "**", "****", "\\frac", "√", "`", "\\(\\)"]
)
def test_fragments_are_read_without_an_error_and_once(text: str) -> None:
    assert plain(plain(text)) == plain(text)
