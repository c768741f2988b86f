"""What did a model behind an endpoint reply? Reads the body of a chat completion, or of a refusal.

Reasoning models are supported: thoughts in `reasoning_content` or `reasoning` are ignored, and so are those before the
tag that ends them (`THOUGHTS`). A chat template may open the thoughts in the prompt; the reply then has the end tag
only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
"""Tags around the thoughts of a reply: Qwen and DeepSeek; Granite and others; Mistral; Kimi-VL."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning")
"""Fields of a message that hold its thoughts, if the server separates them."""
CUT, CUT_IN_THOUGHTS = "a reply cut at its limit", "a reply cut in its thoughts"
MAX_REASON_CHARS = 200


class EndpointError(Exception):
    """There is no reply; `str()` gives a short reason without the key."""


class UnansweredError(EndpointError):
    """The endpoint failed; the same question may succeed later."""


class RefusedError(EndpointError):
    """The endpoint refused this question."""


class UnusableReplyError(EndpointError):
    """The endpoint's reply to this question is truncated, empty or too long."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The first choice of a chat completion."""

    text: str
    """The message's content; empty if it has none."""
    has_separate_thoughts: bool
    """True if the server returned thoughts in a field of their own."""
    is_cut: bool
    """True if the token limit ended the reply."""


def read_completion(body: bytes) -> Completion | None:
    """Returns the first choice of a response's body, or None if the body is not a chat completion."""
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        content = message.get("content")  # some servers leave it out of a reply that is cut in its thoughts
        thoughts = [message.get(name) for name in THOUGHT_FIELDS]
        is_cut = choice.get("finish_reason") == "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(content, list):  # parts, as Mistral's server sends them for a reasoning model
        text = "".join(part["text"] for part in content if _is_text(part))
        thoughts += [part for part in content if not _is_text(part)]
    else:
        text = content if isinstance(content, str) else ""
    return Completion(text=text, has_separate_thoughts=any(thoughts), is_cut=is_cut)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def usable_text(completion: Completion) -> str:
    """Returns the text of a complete reply, without thoughts.

    Raises:
        UnusableReplyError: if the reply is cut or empty.
    """
    text = without_thoughts(completion.text)
    has_thoughts = completion.has_separate_thoughts or text != completion.text
    if completion.is_cut:
        raise UnusableReplyError(CUT_IN_THOUGHTS if has_thoughts and not text.strip() else CUT)
    if not text.strip():
        raise UnusableReplyError("thoughts without a reply" if has_thoughts else "an empty reply")
    return text


def without_thoughts(reply: str) -> str:
    """Returns a reply without its thoughts; empty if they do not end."""
    for begin, end in THOUGHTS:
        reply = reply.rpartition(end)[2]
        if reply.lstrip().startswith(begin):
            return ""
    return reply


def refusal_reason(text: str) -> str:
    """Returns the server's explanation of a refusal in one short line; empty if there is none.

    Args:
        text: the response's body: a page, or JSON as OpenAI, vLLM or FastAPI write it.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = "" if text.lstrip().startswith("<") else text
    while isinstance(found, Mapping):
        found = next((found[name] for name in ("error", "message", "detail", "msg") if found.get(name)), "")
    if not isinstance(found, str):
        found = json.dumps(found, ensure_ascii=False)
    line = " ".join(found.replace(";", ",").split())  # a semicolon separates the parts of a record's rule
    return line if len(line) <= MAX_REASON_CHARS else f"{line[: MAX_REASON_CHARS - 1]}…"
