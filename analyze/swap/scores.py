"""What did the swap do to an answer? The paper's measure of each task, and beside it the ones that say where it went.

A reply is read into an `Answer` and compared with what the pair says of its two pictures and with the unswapped reply:

    paper            appendix D. ocr: the whole reply differs, thoughts included; counting: the count differs;
                     grounding: IoU with the source's box above 0.5; recognition: it says No
    changed          another answer than without a swap
    moved_to_source  the source picture's answer
    kept_target      the target picture's answer
    as_source_reply  what the model itself replies to the source picture: true of all at a swap from layer 0
    answered         an answer was found

Answers are found and compared by the one grader (`eval/grading/`): counting as numbers, the others as text. What it
does not know is added here: numbers spelled as words where a reply has no digits, replies that open with Yes or No, and
boxes, which are the same answer where their IoU is above 0.5. A reply without an answer is neither picture's, as in the
grader, and differs from one that has an answer. None is what cannot be judged: several boxes in one reply, no answer
with and without the swap, two pictures with the same answer.

A model writes boxes in coordinates of its own (`eval/grading/boxes.py`), which are mapped to the image's pixels. Known
limit: x, y, width and height are read as two corners.
"""

import re
from dataclasses import dataclass

from data_builders.pairs.pair import Box, Pair, box_text
from eval.grading import (
    BOX_SPACES,
    IMAGE_SPACE,
    KINDS,
    MIN_IOU,
    BoxSpace,
    Size,
    boxes_in,
    find_answer,
    iou,
    parse_number,
    text_after_thoughts,
)
from eval.grading import box_space as model_space

__all__ = [
    "ANSWER_KINDS", "BOX_SPACES", "IMAGE_SPACE", "METRICS", "NUMBER_WORDS", "PAPER_METRICS",
    "Answer", "BoxSpace", "answer_in", "asks_for_box", "box_space", "can_move", "find_boxes", "gold_answers",
    "gold_texts", "is_right", "same_answer", "score",
]  # fmt: skip

METRICS = ("paper", "changed", "moved_to_source", "kept_target", "as_source_reply", "answered")
PAPER_METRICS = {
    "ocr": "text differs",
    "counting": "count differs",
    "grounding": f"at the source's place (IoU > {MIN_IOU})",
    "recognition": "says No",
}
"""The paper's metric of each task, in words for tables and figures."""

ANSWER_KINDS = {"ocr": "text", "counting": "number", "grounding": "text", "recognition": "text"}
"""Task -> the grader's kind; boxes apart."""
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip


def box_space(space_name: str, *, image_size: Size, grid: tuple[int, int], patch_size: int) -> BoxSpace:
    """Returns the map between a model's coordinates and an image's pixels.

    Args:
        space_name: one of `BOX_SPACES`; a family's record names its own.
        image_size: width and height of the image file.
        grid: rows and columns of patches, as the processor's `image_grid_thw` has them after the time.
        patch_size: the side of a patch in pixels.
    """
    rows, columns = grid
    return model_space(space_name, image_size=image_size, resized_size=(columns * patch_size, rows * patch_size))


@dataclass(frozen=True)
class Answer:
    """What a reply answers; neither text nor box where it holds no answer."""

    text: str | None = None
    box: Box | None = None
    """In the image's pixels."""
    ambiguous: bool = False
    """It holds several answers, so it cannot be judged."""

    @property
    def found(self) -> bool:
        return self.text is not None or self.box is not None


def answer_in(reply: str, pair: Pair, space: BoxSpace = IMAGE_SPACE) -> Answer:
    """Finds the answer to a pair's question in a reply."""
    if asks_for_box(pair):
        boxes = find_boxes(reply)
        return Answer(box=space.to_image(boxes[0])) if len(boxes) == 1 else Answer(ambiguous=len(boxes) > 1)
    if pair.task == "recognition":
        said = re.match(r"\W*(yes|no)\b", _final_part(reply), re.IGNORECASE)
        return Answer(text=said.group(1)) if said else Answer()
    if pair.task == "counting":
        spellings = (reply, _spell_digits(reply))
        numbers = (find_answer(spelling, "number") for spelling in spellings)
        return Answer(text=next((found[0] for found in numbers if found and parse_number(found[0]) is not None), None))
    found = find_answer(reply, "text")
    return Answer(text=found[0]) if found else Answer()


def asks_for_box(pair: Pair) -> bool:
    """True for grounding pairs with boxes; one without them is answered by the name of a place."""
    return pair.task == "grounding" and pair.target_box is not None


def same_answer(first: Answer, second: Answer, pair: Pair) -> bool | None:
    """Are two answers to a pair's question the same? False where one of them is missing, None where both are."""
    if first.ambiguous or second.ambiguous or not (first.found or second.found):
        return None
    if first.box is not None and second.box is not None:
        return iou(first.box, second.box) > MIN_IOU
    if first.text is not None and second.text is not None:
        return KINDS[ANSWER_KINDS[pair.task]](first.text, second.text)
    return False


def gold_answers(pair: Pair) -> tuple[Answer, Answer]:
    """Returns the right answers about the target and about the source picture."""
    if asks_for_box(pair):
        return Answer(box=pair.target_box), Answer(box=pair.source_box)
    return Answer(text=pair.target_answer), Answer(text=pair.source_answer)


def gold_texts(pair: Pair, space: BoxSpace = IMAGE_SPACE) -> tuple[str, str]:
    """Returns the right answers as the model would write them: boxes in its own coordinates."""
    if pair.task != "grounding" or pair.target_box is None or pair.source_box is None:
        return pair.target_answer, pair.source_answer
    return box_text(space.to_model(pair.target_box)), box_text(space.to_model(pair.source_box))


def can_move(pair: Pair) -> bool:
    """False where both pictures have the same answer, so that nothing can be seen to move."""
    return same_answer(*gold_answers(pair), pair) is False


def is_right(pair: Pair, reply: str, *, space: BoxSpace = IMAGE_SPACE) -> bool | None:
    """Is a reply about the target picture, without a swap, right? None where that cannot be judged."""
    return same_answer(answer_in(reply, pair, space), gold_answers(pair)[0], pair)


def score(
    pair: Pair, *, unswapped: str, swapped: str, source_reply: str | None = None, space: BoxSpace = IMAGE_SPACE
) -> dict[str, bool | None]:
    """Judges one swapped reply by every metric; None where one cannot be judged, to be counted apart.

    Args:
        pair: what was asked.
        unswapped: the model's reply about the target picture.
        swapped: its reply with the source's vision in some layers.
        source_reply: its reply about the source picture, where there is one.
        space: how it writes boxes.
    """
    answer, before = answer_in(swapped, pair, space), answer_in(unswapped, pair, space)
    target, source = gold_answers(pair)
    same = same_answer(answer, before, pair)
    changed = None if same is None else not same
    return {
        "paper": _paper_metric(pair, answer, changed, unswapped, swapped),
        "changed": changed,
        "moved_to_source": same_answer(answer, source, pair) if can_move(pair) else None,
        "kept_target": same_answer(answer, target, pair) if can_move(pair) else None,
        "as_source_reply": (
            same_answer(answer, answer_in(source_reply, pair, space), pair) if source_reply is not None else None
        ),
        "answered": answer.found,
    }


def _paper_metric(pair: Pair, answer: Answer, changed: bool | None, unswapped: str, swapped: str) -> bool | None:
    if pair.task == "ocr":
        equal = KINDS["text"](swapped, unswapped)
        return None if equal is None else not equal
    if pair.task == "counting":
        return changed
    if pair.task == "recognition":
        return same_answer(answer, Answer(text="No"), pair)
    return same_answer(answer, gold_answers(pair)[1], pair)


def find_boxes(reply: str) -> list[Box]:
    """Returns the different boxes of a reply, in the model's coordinates.

    Where the reply says which part is its answer (by the grader's rules), only that part counts.
    """
    return boxes_in(_final_part(reply))


def _final_part(reply: str) -> str:
    """Returns what the grader takes as the answer where the reply marks one, else the reply without its thoughts."""
    found = find_answer(reply, "text")
    if found is not None and found[1] != "last sentence":
        return found[0]
    return "" if text_after_thoughts(reply) is None else reply.rpartition("</think>")[2]


def _spell_digits(reply: str) -> str:
    """Writes number words as digits, `one` only where it is the only such word: "three, the red one too" is 3."""
    words = {word.casefold() for word in re.findall(r"[A-Za-z]+", reply)} & set(NUMBER_WORDS)
    for word in words - {"one"} or words:
        reply = re.sub(rf"\b{word}\b", str(NUMBER_WORDS.index(word)), reply, flags=re.IGNORECASE)
    return reply
