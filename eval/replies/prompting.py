"""Turns a prompt into chat messages, for training and scoring alike.

The style is set in the configuration, the same for all models of a comparison, and never inferred from a name.
"""

from typing import Any

from tracking.command import did_you_mean

STYLES = {
    "plain": "{question}",
    "boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "think": "{question}\nThink first inside <think> </think>, then give the final answer inside <answer> </answer>.",
}
"""Style -> template of the question."""


STYLE_ARGUMENT = {
    "help": "how a prompt asks for its answer: plain, boxed or think; use the same in training and evaluation"
}
SYSTEM_ARGUMENT = {"help": "system message; none by default"}
MAX_TOKENS_ARGUMENT = {"help": "maximum length of a reply, in tokens"}
"""Metadata of the fields `prompt_style`, `system_prompt` and `max_new_tokens` of all commands."""


def check_style(style: str) -> None:
    """Rejects an unknown style."""
    if style not in STYLES:
        raise ValueError(
            f"prompt style {style!r} is unknown; expected one of {', '.join(STYLES)}{did_you_mean(style, STYLES)}"
        )


def chat_messages(
    question: str, *, num_images: int, style: str, system_prompt: str | None = None
) -> list[dict[str, Any]]:
    """Returns the messages of one prompt: images first, then the question, as in Qwen-VL's training."""
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
    parts.append({"type": "text", "text": STYLES[style].format(question=question)})
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    messages.append({"role": "user", "content": parts})
    return messages
