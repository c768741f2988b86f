r"""What in a reply is markup? Thoughts, tokens of chat templates, delimiters of formulas, and lines of layout.

    thoughts  `<think>…</think>`, and the same under other names: `<thinking>`, `◁think▷`, `[THINK]`
    turn      the reply ends at its first end-of-turn token (`<|im_end|>`, `</s>`), if one was left in
    box       GLM's `<|begin_of_box|>…<|end_of_box|>` is read as `\boxed{…}`
    formula   LaTeX between `$…$`, `\(…\)`, `$$…$$` or `\[…\]`
    layout    closing lines such as `$$`, a code fence or a rule

Answers are looked for after the thoughts. If nothing follows them, the thoughts count. A reply that ends inside its
thoughts has no text after them, unless it ends with a complete `<answer>…</answer>`: a model that forgot to close its
thoughts has still answered. Some chat templates open `<think>` at the end of the prompt. Such a reply starts inside its
thoughts without saying so; `continued` writes the tag before it.

A dollar sign opens a formula if there is no blank after it, none before the closing one, and no digit after that, as in
Pandoc; or if there are blanks on both inner sides. So `$12$ cm` has a formula, and `$5 and $7` has two prices.
"""

import re

OPENED, CLOSED = "<think>", "</think>"
MAX_FORMULA_CHARS = 4_000
"""Longer texts are not searched for formulas: unclosed delimiters would make the search quadratic."""

_THINK = r"(?:think(?:ing)?|thoughts?|reasoning|seed:think)"
_OPENS = re.compile(rf"<{_THINK}>|<\|begin_of_thought\|>|◁think▷|\[THINK\]", re.IGNORECASE)
_CLOSES = re.compile(rf"</{_THINK}>|<\|end_of_thought\|>|◁/think▷|\[/THINK\]", re.IGNORECASE)
_ENDS_OPEN = re.compile(rf"(?:{_OPENS.pattern})\s*\Z", re.IGNORECASE)
_ANSWER = re.compile(r"<(/?)\s*answer\s*>", re.IGNORECASE)
_GLM_BOX = re.compile(r"<\|begin_of_box\|>((?:(?!<\|begin_of_box\|>).)*?)<\|end_of_box\|>", re.DOTALL)
_HEADER = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant\b|<\|assistant\|>|<start_of_turn>\s*model\b|<s>"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<｜Assistant｜>)\s*"
)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eom_id|end|endofturn|end_of_turn|eos|pad|return|user"
    r"|observation|start_header_id)\|>|<(?:end_of_turn|start_of_turn|eos|pad)>|</s>|<｜(?:end▁of▁sentence|User)｜>"
)
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


def text_after_thoughts(response: str) -> str | None:
    """Returns the final text of a reply; None if it ends inside its thoughts."""
    if "<" not in response and "◁" not in response and "THINK]" not in response:
        return response
    text = spelled_alike(response)
    closed = text.rfind(CLOSED)
    opened = text.find(OPENED, max(closed, 0))
    if opened >= 0:
        answered = text.rfind("<answer>", opened)
        return text[answered:] if answered >= 0 and text.rstrip().endswith("</answer>") else None
    if closed < 0:
        return text
    final = text[closed + len(CLOSED) :]
    return final if final.strip() else text


def spelled_alike(response: str) -> str:
    """Returns a reply without the tokens of chat templates, with the tags of thoughts and answers in one spelling."""
    header = _HEADER.match(response)
    response = _END_OF_TURN.split(response[header.end() :] if header else response, maxsplit=1)[0]
    response = _GLM_BOX.sub(r"\\boxed{\1}", _ANSWER.sub(r"<\1answer>", response))
    return _CLOSES.sub(CLOSED, _OPENS.sub(OPENED, response))


def opens_thoughts(prompt: str) -> bool:
    """True if a rendered prompt ends with an opened `<think>`, so that the reply starts inside its thoughts."""
    return _ENDS_OPEN.search(prompt[-40:]) is not None


def continued(response: str, *, opened: bool) -> str:
    """Returns a reply with the `<think>` that its prompt opened, if it did."""
    return OPENED + response if opened else response


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
    return ("$" in text or "\\(" in text or "\\[" in text) and len(text) <= MAX_FORMULA_CHARS


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
