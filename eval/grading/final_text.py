r"""Which part of a reply can hold its answer? The text after its thoughts, in one spelling of every family's markers.

    thoughts  `<think>…</think>`, and the same under other names: `<thinking>`, `◁think▷`, `[THINK]`
    turn      the reply ends at its first end-of-turn token (`<|im_end|>`, `</s>`), if one was left in
    box       GLM's `<|begin_of_box|>…<|end_of_box|>` is read as `\boxed{…}`

If nothing follows the thoughts, the thoughts count. A reply that ends inside its thoughts has no final text, unless it
ends with a complete `<answer>…</answer>`: a model that forgot to close its thoughts has still answered.

Some chat templates open `<think>` at the end of the prompt. Such a reply starts inside its thoughts without saying so;
`continued` writes the tag before it.
"""

import re

OPENED, CLOSED = "<think>", "</think>"

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
