r"""Which formulas does a text contain? LaTeX between delimiters: `$…$`, `\(…\)`, `$$…$$`, `\[…\]`.

A dollar sign opens a formula if there is no blank after it, none before the closing one, and no digit after that, as in
Pandoc; or if there are blanks on both inner sides. So `$12$ cm` has a formula, and `$5 and $7` has two prices.
"""

import re

MAX_CHARS = 4_000
"""Longer texts are not searched for formulas: unclosed delimiters would make the search quadratic."""

_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\$])\$(?![\s$])((?:[^$\n\\]|\\.)+)(?<!\s)\$(?![\d$])|(?<![\\$])\$[ ]((?:[^$\n\\]|\\.)+)[ ]\$(?!\s?[\d$])",
    re.DOTALL,
)
_LAYOUT_LINE = re.compile(
    r"(?:\$\$|\\[\[\]]|`{3,}\w*|~{3,}|(?:[-*_=]\s?){3,}|\\(?:begin|end)\{[a-z]+\*?\}(?:\{[^{}]*\})?|\*+)?"
)
_CLOSES_DISPLAY = re.compile(r"\$\$|\\\]|\\end\{[a-z]+\*?\}")
_LINE_BREAK = re.compile(r"\\\\(?:\[[^\[\]]*\])?$")
_SEVERAL = re.compile(r",\s|;|\\quad|\\text\s*\{\s*(?:and|or)\b|\b(?:and|or)\b")
_THEREFORE = re.compile(r"^\s*\\(?:therefore|implies|(?:Long)?[rR]ightarrow)(?![A-Za-z])\s*")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


def formulas_in(text: str) -> list[str]:
    """Returns the contents of the formulas of a text, in order."""
    if not _may_have_any(text):
        return []
    return [next(filter(None, groups)) for groups in _FORMULA.findall(text)]


def undelimited(text: str) -> str:
    """Returns a text in which the delimiters of formulas are left out: `$12$ cm` becomes `12 cm`."""
    if not _may_have_any(text):
        return text
    return _FORMULA.sub(lambda found: found[found.lastindex or 0], text)


def _may_have_any(text: str) -> bool:
    return ("$" in text or "\\(" in text or "\\[" in text) and len(text) <= MAX_CHARS


def without_layout(text: str) -> tuple[str, bool]:
    r"""Returns a text without closing lines of layout, and whether its last line then is a displayed formula.

    Such lines are the delimiters of displayed formulas (`$$`, `\]`, `\end{align}`), code fences and rules (`---`).
    """
    lines = text.rstrip().split("\n")
    is_display = False
    while lines and _LAYOUT_LINE.fullmatch(lines[-1].strip()):
        is_display |= _CLOSES_DISPLAY.fullmatch(lines.pop().strip()) is not None
    if lines and not is_display:
        is_display = _ends_display(lines)
    return "\n".join(lines), is_display


def _ends_display(lines: list[str]) -> bool:
    """True if the last line closes a displayed formula that an earlier line opened; the delimiter is removed."""
    last = lines[-1].rstrip(" .")
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if last.endswith(closing) and opening not in last.removesuffix(closing):
            lines[-1] = last.removesuffix(closing)
            return True
    return False


def displayed(line: str) -> str:
    r"""Returns the formula in a line of a display: without alignment marks, delimiters and line breaks."""
    line = line.strip().removeprefix("$$").removeprefix("\\[").removesuffix("$$").removesuffix("\\]")
    return _LINE_BREAK.sub("", line.replace("\\&", "\0").replace("&", "").replace("\0", "\\&").strip()).strip(" .,")


def result_of(formula: str) -> str:
    """Returns the result of a calculation: what follows the last `=` of a chain, or of a left side without variables.

    An equation (`y = 2x`), a definition in a sum (`n=1`) and several assignments (`a = 1, b = 2`) are returned whole.
    """
    formula = _THEREFORE.sub("", formula)
    left, equals, right = formula.rpartition("=")
    if not equals or not right.strip() or right.count("{") != right.count("}") or _SEVERAL.search(formula):
        return formula
    if left.rstrip().endswith(("<", ">", "!", ":")):
        return formula
    return right if "=" in left or not _VARIABLE.search(left) else formula
