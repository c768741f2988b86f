"""The processor that reads each distinct row once gives what the original gives, and processes fewer pictures."""

from typing import Any

import pytest
import torch
from PIL import Image
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from models.loading import load_processor
from train.sharing.processor import DistinctProcessor, DistinctRows

FAMILIES = ("pocket", "qwen2_vl", "qwen3_vl", "internvl")


def picture(grey: int, width: int = 56) -> Image.Image:
    return Image.new("RGB", (width, 56), (grey, grey, 100))


def make_batch(*, with_pictures: bool) -> list[tuple[str, list[Image.Image]]]:
    """Rows with one picture, two, none, and equal rows whose pictures are other objects."""
    if not with_pictures:
        return [("How many ?", []), ("What is it", []), ("How many ?", [])]
    return [
        ("How many ?", [picture(1)]),
        ("How many ?", [picture(1)]),
        ("How many ?", [picture(2)]),
        ("Describe .", [picture(2), picture(3, 84)]),
        ("What is it", []),
        ("Describe .", [picture(2), picture(3, 84)]),
        ("How many ?", [picture(1)]),
    ]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs) and list(ours) == list(theirs)
    for name, original in theirs.items():
        tiles = isinstance(original, list) and isinstance(original[0], torch.Tensor)  # a list, which ours joins
        expected = torch.stack(original) if tiles else original
        if isinstance(expected, torch.Tensor):
            assert torch.equal(ours[name], expected), name
        else:
            assert ours[name] == expected, name


@pytest.mark.cases_slow
@pytest.mark.parametrize("with_pictures", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_and_texts_are_processed_as_by_the_original(
    family: str, with_pictures: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = load_processor(request.getfixturevalue(f"{family}_checkpoint"))
    batch = make_batch(with_pictures=with_pictures)
    conversations = [
        prepare_multimodal_messages([{"role": "user", "content": text}], images=images) for text, images in batch
    ]
    seen: list[int] = []
    process = processor._process_images
    monkeypatch.setattr(processor, "_process_images", lambda images, **options: count(seen, process, images, options))
    found = []
    tile_tokens = processor.image_seq_length if family == "internvl" else None
    for contender in (processor, DistinctProcessor(processor, tile_tokens=tile_tokens)):
        seen.clear()
        tokenized = contender.apply_chat_template(
            conversation=conversations, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        texts = [apply_chat_template({"prompt": row}, contender)["prompt"] for row in conversations]
        images = [images for _, images in batch] if with_pictures else None
        padded = contender(images=images, text=texts, padding=True, return_tensors="pt")
        found.append((tokenized, texts, padded, sum(seen)))
    (tokenized, texts, padded, num_seen), ours = found
    assert_equal(ours[0], tokenized)
    assert ours[1] == texts
    assert_equal(ours[2], padded)
    assert (num_seen, ours[3]) == ((16, 8) if with_pictures else (0, 0))


def count(seen: list[int], process: Any, images: Any, options: dict[str, Any]) -> Any:
    """Counts pictures, which come in lists of a row or in one list."""
    seen.append(sum(len(entry) if isinstance(entry, list) else 1 for entry in images))
    return process(images, **options)


def test_rows_are_the_same_only_if_texts_and_pictures_are() -> None:
    rows = [("a", (picture(1),)), ("a", (picture(2),)), ("b", (picture(1),)), ("a", (picture(1),)), ("a", ())]
    distinct = DistinctRows(rows)
    assert (distinct.first, distinct.places) == ([0, 1, 2, 4], [0, 1, 2, 0, 3])


def test_everything_else_is_the_originals(pocket_checkpoint: Any) -> None:
    processor = load_processor(pocket_checkpoint)
    ours = DistinctProcessor(processor)
    assert ours.tokenizer is processor.tokenizer
    assert ours(text="What is it")["input_ids"] == processor(text="What is it")["input_ids"]
