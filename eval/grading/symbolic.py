r"""Are two values equal as mathematics? The part of the grader that runs in a judge's process, with math-verify.

Each side is parsed by `latex2sympy`, the parser of math-verify, after its text was rewritten so that the parser reads
it as it is meant (`_rewritten`): its defaults ignore the case of letters, remove trailing letters as units, read
`1\frac{1}{2}\pi` as half of pi, and `I` as the imaginary unit. Decimals become exact fractions. Two expressions are
then compared by value at several points: the tolerance is relative, 20 digits, or 12 if a decimal is compared with an
irrational number. Equations, inequalities, sets, intervals and matrices are compared by math-verify.

Undecided (None) are golds that do not parse, expressions that are equal for positive letters only, and conditions in
words that one side has and the other does not. Nothing here limits time: see `mathematics.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from math_verify.parser import get_last_eq
from sympy import (  # type: ignore[import-untyped]
    Abs,
    Derivative,
    E,
    Expr,
    FiniteSet,
    Float,
    I,
    Integral,
    Intersection,
    Limit,
    Mul,
    Pow,
    Product,
    Rational,
    S,
    Set,
    Sum,
    Symbol,
    Union,
    pi,
)
from sympy.core.relational import Eq, Relational  # type: ignore[import-untyped]
from sympy.logic.boolalg import And  # type: ignore[import-untyped]

from eval.grading.latex import plain
from eval.grading.notations import UNDECIDABLE, compare_notations
from eval.grading.quantities import are_compatible
from eval.grading.structure import are_side_by_side, equal_structures
from eval.grading.units import PERCENT, UNITS, Unit, known_unit, parse_unit

DIGITS = 40
EXACT, APPROXIMATE = Rational(1, 10**20), Rational(1, 10**12)
"""Relative tolerances, without and with a decimal; 12 digits tell 1.414214 from a root of 2."""
NEARLY_ZERO = Rational(1, 10**90)
"""A sum that cancels to less is zero: SymPy evaluates sums to at most 100 digits."""
FLOAT_DECIMALS = 12
POINTS = ((37, 29), (-41, 23), (53, 31), (-7, 13))
"""Values of the first letter as fractions; the next letters' are near them."""
NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
CONVERSION = ConversionConfig(lowercase_symbols=False)
UNEVALUATED = (Integral, Sum, Product, Limit, Derivative)
"""Operations whose value is a matter of mathematics, not of digits."""

_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
_MIXED = re.compile(rf"(?<![\d.^_A-Za-z}}])(\d+)\s*{_FRACTION}|(?<![\d.^_A-Za-z}}/])(\d+) (\d+)/(\d+)(?![\d.])")
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])")
_PRIME = re.compile(r"([A-Za-z])('+)")
_NAME = re.compile(r"\\(?:text|mbox|mathrm|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+(?![A-Za-z])(?:\s*\()?|I")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\s*\\degree(?![A-Za-z])|\s*°")
_DEGREES = re.compile(r"(?<![\w.^])(\d+(?:\.\d+)?)\^\{\\circ\}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_TEXT_STARTS = re.compile(r"\\(?:text|mbox|textrm|mathrm|textbf|operatorname)\s*\{")
_BARE_UNIT = re.compile(r"(?<=[\d})\s])\s*([A-Za-zμ]{2,}(?:\^\{?[23]\}?)?(?:/[A-Za-z]+(?:\^\{?[23]\}?)?)?)$")
_WORDS = re.compile(r"\\(?:text|mbox|textrm)\s*\{[^{}]*[A-Za-z]{2}[^{}]*\}")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|per cent)\s*\}|percent)$")
_ORDER = re.compile(r"[<>]|\\(?:[lg](?:e|eq|t|eqslant)|neq?)(?![A-Za-z])")
_CONNECTED = re.compile(r" (?:or|and) |,|\\cup")


def judge(answer: str, gold: str) -> bool | None:
    """Returns whether two answers are equal; None if that cannot be decided."""
    return equal_structures(answer, gold, equal_values)


def equal_values(answer: str, gold: str) -> bool | None:
    """Compares two values, which may be equations, intervals or matrices as well."""
    if plain(answer) == plain(gold):
        return True
    noted = compare_notations(answer, gold)
    if noted is not None:
        return None if noted == UNDECIDABLE else bool(noted)
    if are_side_by_side(answer) != are_side_by_side(gold):
        return False
    verdict = _equal_quantities(split_unit(answer), split_unit(gold))
    if verdict is not True and any(_BARE_UNIT.search(side) for side in (answer, gold)):
        bare = _equal_quantities(split_unit(answer, bare=True), split_unit(gold, bare=True))
        verdict = bare if bare is not None else verdict  # `2mg` is a product or a mass
    return verdict


def _equal_quantities(answer: tuple[str, Unit | None], gold: tuple[str, Unit | None]) -> bool | None:
    """Compares two values with their units."""
    (ours, unit), (theirs, right_unit) = answer, gold
    is_complex = should_treat_as_complex(ours) or should_treat_as_complex(theirs)
    if (_ORDER.search(ours) or _ORDER.search(theirs)) and (_CONNECTED.search(ours) or _CONNECTED.search(theirs)):
        region, right_region = _region(ours, is_complex), _region(theirs, is_complex)
        if region is not None and right_region is not None:
            return _equal_regions(region, right_region)
    right = _parsed(theirs, is_complex)
    if right is None:
        return None
    left = _parsed(ours, is_complex)
    if left is None:
        return False
    verdicts = [_equal(left, right, factor) for factor in _factors(unit, right_unit)]
    if True in verdicts:
        return True
    return None if None in verdicts or _differ_in_words(ours, theirs) else False


def _differ_in_words(ours: str, theirs: str) -> bool:
    """True if one value is the other with a condition in words, such as `12 \\text{ if } n > 3`."""
    words = [_WORDS.search(side) for side in (ours, theirs)]
    if (words[0] is None) == (words[1] is None):
        return False
    bare = [
        side[: found.start()].strip(" ,") if found else side for found, side in zip(words, (ours, theirs), strict=True)
    ]
    return all(bare) and equal_values(*bare) is True


def split_unit(text: str, *, bare: bool = False) -> tuple[str, Unit | None]:
    """Returns a value without its unit, and the unit; letters without `\\text` are units only if `bare`."""
    percent = _PERCENT.search(text)
    if percent and percent.start() > 0:
        return text[: percent.start()], UNITS[PERCENT]
    if _DEGREE.search(text) and not _TRIGONOMETRY.search(text):
        inner = _DEGREE.sub(r"^{\\circ}", text)
        return inner, UNITS["°"]
    starts = _TEXT_STARTS.search(text)
    if starts and text[: starts.start()].strip():
        unit = parse_unit(plain(text[starts.start() :]))
        if unit is not None:
            return text[: starts.start()], unit
    letters = _BARE_UNIT.search(text) if bare else None
    if letters and text[: letters.start()].strip():
        unit = known_unit(plain(letters[1]))
        if unit is not None:
            return text[: letters.start()], unit
    return text, None


def _factors(ours: Unit | None, theirs: Unit | None) -> Sequence[Any]:
    """Returns the factors by which an answer may be multiplied before it is compared."""
    dimensions = (ours.dimension if ours else None, theirs.dimension if theirs else None)
    if dimensions in (("degrees", "radians"), ("degrees", None)):
        return (pi / 180,) if theirs else (1, pi / 180)
    if dimensions in (("radians", "degrees"), (None, "degrees")):
        return (180 / pi,) if ours else (1, 180 / pi)
    if ours is not None and theirs is not None:
        if not are_compatible(ours, theirs):
            return ()
        factor = ours.factor / theirs.factor
        return (Rational(factor.numerator, factor.denominator),)
    if PERCENT in dimensions:
        return (1, Rational(1, 100) if ours else 100)
    return (1,)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A parsed value."""

    value: Any
    """An expression of SymPy, a relation, a set or a matrix."""
    has_decimal: bool = False


@lru_cache(maxsize=256)
def _parsed(text: str, is_complex: bool) -> Formula | None:
    """Parses a formula; None if it is none."""
    text = normalize_latex(_rewritten(text), NORMALIZATION)
    converts = bool(_TRIGONOMETRY.search(text))
    for candidate in dict.fromkeys((text, get_last_eq(text))):
        try:
            parsed = latex2sympy(
                candidate,
                is_real=not is_complex,
                convert_degrees=converts,
                normalization_config=None,
                conversion_config=CONVERSION,
            )
            return _meant(parsed)
        except Exception:  # the parser fails with errors of its grammar, of SymPy and of Python
            continue
    return None


def _rewritten(text: str) -> str:
    """Spells a formula so that `latex2sympy` reads it as it is meant."""
    text = _MIXED.sub(_improper, text)
    text = _E_NOTATION.sub(r"\1\\times 10^{\2}", text)
    text = _DEGREE.sub(r"^{\\circ}", text)
    if _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = _PRIME.sub(lambda found: rf"\text{{{found[1]}{'prime' * len(found[2])}}}", text)
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", text)
    return _NAME.sub(_renamed, text)


def _improper(found: re.Match[str]) -> str:
    """Returns a mixed number as an improper fraction."""
    whole, top, bottom = (int(group) for group in found.groups() if group)
    return f"(\\frac{{{whole * bottom + top}}}{{{bottom}}})"


def _renamed(found: re.Match[str]) -> str:
    name = found.group()
    if name == "I":
        return "\\text{I}"
    if name.rstrip(" (") == "\\gamma" or name == "\\Gamma":  # the parser reads both as Euler's constant
        return f"\\text{{{name[1:6]}letter}}{name[6:]}"
    return name


def _meant(value: Any) -> Formula:
    """Replaces decimals by exact fractions, odd roots of negative numbers by real ones, `i` by the imaginary unit."""
    if not isinstance(value, Expr) or value.is_Matrix:
        return Formula(value=value)
    decimals = {number: Rational(str(number)) for number in value.atoms(Float)}
    replaced = dict(decimals)
    names = {symbol.name: symbol for symbol in value.free_symbols if isinstance(symbol, Symbol)}
    if "i" in names and not names.keys() & {"j", "k"}:
        replaced[names["i"]] = I
    if replaced:
        value = value.xreplace(replaced)
    return Formula(value=value.replace(_is_odd_root_of_negative, _real_root), has_decimal=bool(decimals))


def _is_odd_root_of_negative(value: Any) -> bool:
    if not isinstance(value, Pow) or not value.exp.is_Rational or value.exp.q % 2 == 0 or value.exp.q == 1:
        return False
    return bool(value.base.could_extract_minus_sign() if value.base.free_symbols else value.base.is_negative)


def _real_root(value: Any) -> Any:
    return (-1) ** value.exp.p * Pow(-value.base, value.exp)


def _region(text: str, is_complex: bool) -> tuple[Any, set[Any]] | None:
    """Returns the numbers that fulfil inequalities joined by `or` and `and`, and their letters; None if that fails."""
    alternatives: list[Any] = []
    letters: set[Any] = set()
    for alternative in re.split(r" or |\\cup(?![A-Za-z])", text):
        pieces = [alternative] if re.search(r"[()\[\]]", alternative) else re.split(r" and |,", alternative)
        try:
            formulas = [_parsed(piece.strip(), is_complex) for piece in pieces]
            solutions = [_solutions(formula) for formula in formulas]
            letters |= {letter for formula in formulas if formula for letter in formula.value.free_symbols}
            common = Intersection(*solutions)
            alternatives.append(Union(*solutions) if common is S.EmptySet and "," in alternative else common)
        except Exception:  # SymPy cannot solve every inequality, and fails in many ways
            return None
    return Union(*alternatives), letters


def _equal_regions(ours: tuple[Any, set[Any]], theirs: tuple[Any, set[Any]]) -> bool:
    if ours[1] and theirs[1] and ours[1] != theirs[1]:
        return False
    return bool(ours[0] == theirs[0] or ours[0].symmetric_difference(theirs[0]).is_empty)


def _solutions(formula: Formula | None) -> Any:
    value = formula.value if formula else None
    if isinstance(value, Eq):
        return value.rhs if isinstance(value.rhs, Set) else FiniteSet(value.rhs)
    if isinstance(value, Relational | And):
        return value.as_set()
    if not isinstance(value, Set):
        raise ValueError(f"{value} is neither an inequality nor a set")
    return value


def _equal(ours: Formula, theirs: Formula, factor: Any) -> bool | None:
    left, right = _last_side(ours.value, theirs.value), _last_side(theirs.value, ours.value)
    if not all(isinstance(side, Expr) and not side.is_Matrix for side in (left, right)):
        return bool(
            verify([right], [left], float_rounding=FLOAT_DECIMALS, allow_set_relation_comp=True, timeout_seconds=None)
        )
    names = [_name(side) for side in (left, right)]
    if all(names) and any(isinstance(side, Symbol) for side in (left, right)):
        return names[0] == names[1]
    left = left if factor == 1 else factor * left
    return _equal_expressions(left, right, has_decimal=ours.has_decimal or theirs.has_decimal)


def _last_side(value: Any, other: Any) -> Any:
    """Returns the last side of an equation or a chain of equations that is compared with an expression."""
    if isinstance(other, Expr):
        if isinstance(value, Eq):
            return value.rhs
        if isinstance(value, And) and all(isinstance(own, Eq) for own in value.args):
            return value._unsorted_args[-1].rhs
    return value


def _name(value: Any) -> str:
    """Returns the letters of a symbol or a product of symbols: `\\text{abc}` is the product `abc`, too."""
    if isinstance(value, Symbol):
        return str(value.name)
    if value == E:
        return "e"
    names = [_name(factor) for factor in value.args] if isinstance(value, Mul) else [""]
    return "".join(names) if all(names) else ""


def _equal_expressions(left: Any, right: Any, *, has_decimal: bool) -> bool | None:
    """Compares two expressions by value; exactly if both are rational."""
    if left == right:
        return True
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    tolerance = APPROXIMATE if has_decimal else EXACT
    verdicts: list[bool] = []
    for top, bottom in POINTS if symbols else POINTS[:1]:
        point = {symbol: Rational(top + 16 * number, bottom + 2 * number) for number, symbol in enumerate(symbols)}
        first, second = (side.subs(point).replace(_is_odd_root_of_negative, _real_root) for side in (left, right))
        verdict = _close(first, second, tolerance)
        if verdict and first.is_rational and second.is_rational:
            difference = (first - second).doit()
            verdict = bool(difference == 0) if difference.is_Rational else verdict
        if verdict is False and not verdicts:
            return False
        if verdict is not None:
            verdicts.append(verdict)
    is_certain = not symbols or len(verdicts) > 1
    if all(verdicts) and is_certain and verdicts and not left.has(*UNEVALUATED) and not right.has(*UNEVALUATED):
        return True
    if all(verdicts):
        return bool(verify([right], [left], float_rounding=FLOAT_DECIMALS, timeout_seconds=None))
    return False if left.has(Abs) or right.has(Abs) else None


def _close(first: Any, second: Any, tolerance: Any) -> bool | None:
    """Returns whether two numbers agree within a relative tolerance; None if one has no finite value."""
    try:
        values = [side.evalf(DIGITS) for side in (first, second)]
        sizes = [abs(value) for value in values]
        if not all(size.is_Number and size.is_finite for size in sizes):
            return None
        largest = max(*sizes)
        return bool(largest < NEARLY_ZERO or abs(values[0] - values[1]) <= tolerance * largest)
    except (TypeError, ValueError, ArithmeticError):
        return None
