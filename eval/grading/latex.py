r"""Normalises short answers: one plain spelling for LaTeX, Unicode and Markdown, so that equal answers compare equal.

`plain` changes spelling only, never meaning: `\dfrac 43`, `$\frac{4}{3}$` and `\frac{4}{3}.` become `\frac{4}{3}`. Two
answers with the same plain spelling are equal; two with different ones may still be equal. Upper case, order, brackets
and thousands commas are kept.
"""

import re
from functools import lru_cache

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5E)}
"""`！` to `｝`, with the digits, letters and signs between them; `～` is a range, not LaTeX's space."""
_UNICODE = _FULL_WIDTH | str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∠": r"\angle ", "≈": r"\approx ", "°": r"^\circ ", "º": r"^\circ ", "Ω": r"\Omega ",
    "。": ".", "、": ",", "∶": ":", "﹣": "-", "‐": "-", "‑": "-", "￥": "¥", "℃": r"^\circ C", "℉": r"^\circ F",
    "｛": r"\{", "｝": r"\}",
    "\u3000": " ", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "’": "'", "‘": "'", "“": '"', "”": '"', "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⅛": r"\frac{1}{8}",
})  # fmt: skip
_ROOT = re.compile(r"√\s*\(([^()]*)\)|√\s*\{([^{}]*)\}|√\s*(\d+|[A-Za-z])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

_Step = tuple[str, re.Pattern[str], str]
_STEPS: list[_Step] = [
    (sign, re.compile(pattern), replacement)
    for sign, pattern, replacement in (
        # LaTeX's spellings of a thousands separator
        ("", r"(?<=\d)(?:,\\!\s*|\{,\}|\\[,;:!]|\\ |~|\{\\[,:; ]\})(?=\d{3})", ""),
        ("\\", r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?|limits)(?![A-Za-z])\s*\.?", ""),
        ("", r"\\[,;:! ]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)space(?![A-Za-z])|(?<!\\)~", " "),
        ("frac", r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (
            "\\",
            r"\\(?:text|mbox|hbox|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        ("\\frac", r"\\frac\s*(\d|[A-Za-z](?![A-Za-z]))", r"\\frac{\1}"),
        ("\\frac", r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*(\d|[A-Za-z])", r"\\frac{\1}{\2}"),
        ("\\frac", r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        ("\\sqrt", r"\\sqrt\s*(\d|[A-Za-z](?![A-Za-z]))", r"\\sqrt{\1}"),
        ("\\circ", r"\s*(?:\^\s*\{\s*\\circ\s*\}|\^\s*\\circ)(?![A-Za-z])", "°"),
        ("\\degree", r"\s*\*?\s*\\degree(?![A-Za-z])", "°"),
        ("{", r"([\^_])\s*\{\s*(\w)\s*\}(?!\d)", r"\1\2"),
        ("\\", r"\\(le|ge|ne)(?![A-Za-z])", r"\\\1q"),
        ("brace", r"\\lbrace(?![A-Za-z])", r"\\{"),
        ("brace", r"\\rbrace(?![A-Za-z])", r"\\}"),
        ("\\%", r"\\%", "%"),
        ("\\cdot", r"(?<=\d)\s*\\cdot\s*(?=\\[A-Za-z]|[A-Za-z(])", ""),
        ("\\times", r"(?<=\d)\s*\\times\s*(?=\\[A-Za-z]|[A-Za-z(])", ""),
        ("*", r"(?<=\d)\s*\*\s*(?=\\[A-Za-z]|[A-Za-z(])", ""),
        ("\\cdot", r"\s*\\cdot\s*(?=\d)", r"\\times "),
        ("\\times", r"\s*\\times\s*(?=\d)", r"\\times "),
        (",", r"(?<=\d)\s*,\s+(?=\d{3}(?!\d))", ", "),  # a list of numbers, not thousands
        (
            " ",
            r"\s++(?![A-Za-z0-9])|(?<![A-Za-z0-9,])\s+|(?<=,)\s+(?!\d{3}(?!\d))|(?<=\d)\s+(?=[A-Za-z])",
            "",
        ),
    )
]
"""A sign without which a step changes nothing, what it looks for, and what it writes instead."""
_FACTORS = r"(?:[\d.{}]|\\sqrt|\\pi\s?)+"
_SLASH = re.compile(rf"([+-]?)({_FACTORS})/({_FACTORS})")
_FULL_STOP = re.compile(r"[\s.,;]+$")
_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), (r"\boxed{", "}"))


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Returns the plain spelling of a short answer."""
    text = in_ascii(unwrapped(text))
    if "\\" in text or "{" in text or "*" in text or "^" in text or " " in text or "~" in text or "\n" in text:
        text = text.replace("\n", " ").replace("\t", " ")
        for sign, pattern, replacement in _STEPS:
            if sign in text:
                text = pattern.sub(replacement, text)
    text = _FULL_STOP.sub("", text).strip()
    slash = _SLASH.fullmatch(text) if text.count("/") == 1 else None
    return f"{slash[1]}\\frac{{{slash[2]}}}{{{slash[3]}}}" if slash else text


def unwrapped(text: str) -> str:
    r"""Strips what encloses the whole text (`$…$`, `\(…\)`, `**…**`, `\boxed{…}`) and a final full stop."""
    text = _FULL_STOP.sub("", text).strip()
    for opening, closing in _PAIRS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if opening == "\\boxed{" and not _is_balanced(inner):
                continue
            if opening[-1] not in inner.replace("\\$", "") or opening in ("\\boxed{", "\\(", "\\["):
                return unwrapped(inner) if inner.strip() else text
    return text


def in_ascii(text: str) -> str:
    """Returns a text with mathematical symbols as LaTeX, and digits of all scripts as 0 to 9."""
    if text.isascii():
        return text
    text = _ROOT.sub(r"\\sqrt{\1\2\3}", text.translate(_UNICODE))
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: f"^{{{found.group().translate(_SUPERSCRIPTS)}}}", text)
    return "".join(str(int(sign)) if sign.isdecimal() and not sign.isascii() else sign for sign in text)


def _is_balanced(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0
