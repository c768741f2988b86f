"""How does the model in training write its replies? What rewards must know of its chat template and its family.

Some chat templates open `<think>` at the end of the prompt: the reply then starts inside its thoughts, and its form is
that of a reply with the tag. A model writes boxes in coordinates of its family (`eval/grading/boxes.py`), while golds
are in the image's pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.grading import continued, opens_thoughts
from eval.replies.generation import render_messages
from eval.replies.pictures import AnswerSpaces, answer_spaces, pixel_limits
from eval.replies.prompting import chat_messages

if TYPE_CHECKING:
    from eval.replies.generation import Processor


@dataclass(frozen=True, kw_only=True)
class ReplyForm:
    """How a model writes; by default a model whose template opens nothing, and that writes boxes in pixels."""

    opened_thoughts: bool = False
    """True if the prompt ends with an opened `<think>`."""
    spaces: AnswerSpaces | None = None
    """How it writes boxes; None for pixels."""

    def reply(self, completion: str) -> str:
        """Returns a completion with the tag that its prompt opened."""
        return continued(completion, opened=self.opened_thoughts)

    def gold(self, gold: str, kind: str, images: Sequence[Any]) -> str:
        """Returns a gold answer as the model would write it.

        Args:
            images: the prompt's images, opened; empty if they are not known.
        """
        if kind != "box" or self.spaces is None or not images:
            return gold
        space = self.spaces.of_images([image.size for image in images])
        return gold if space is None else space.gold_text(gold)


AS_GIVEN = ReplyForm()


def reply_form(
    model_type: str,
    processor: "Processor",
    *,
    box_space: str | None = None,
    template_options: dict[str, Any] | None = None,
) -> ReplyForm:
    """Returns how a model of a family with this processor writes.

    Args:
        box_space: the coordinates in which it writes boxes; by default its family's.
        template_options: further arguments of the chat template.
    """
    messages = chat_messages("1", num_images=0, style="plain")
    prompt = render_messages(processor, messages, add_generation_prompt=True, **(template_options or {}))
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    return ReplyForm(opened_thoughts=opens_thoughts(prompt), spaces=answer_spaces(model_type, limits, name=box_space))
