"""Reads the pairs released with the paper into this suite's `Pair` records, unchanged.

The set (xirui-li/Frankenstein, `Datasets/`) has a folder for each task with its `data.jsonl`:

    {"id": "…", "task": "ocr", "target_image": "…", "source_image": "…", "prompt": "…", "meta": {"target_text": "…", …}}

`python -m data_builders.validate FOLDER` lists its defects: pairs with the same word, boxes that overlap or differ in
size, unrelated scenes, prompts with a literal `<image>`.
"""

from typing import Any

from data_builders.pairs.defects import PLACEHOLDER
from data_builders.pairs.pair import Pair, box_text, read_box

PUBLISHED_FILE = "data.jsonl"
PUBLISHED_KEYS = {
    "target_answer": ("target_answer", "target_text"),
    "source_answer": ("source_answer", "source_text"),
    "target_box": ("target_bbox_xyxy",),
    "source_box": ("source_bbox_xyxy",),
}
"""Field of a pair -> its keys in `meta` of the published sets."""


def from_published_row(row: dict[str, Any]) -> Pair:
    """Returns the pair in a line of `data.jsonl`; a placeholder is removed from the prompt and recorded in `meta`."""
    prompt, meta = row.get("prompt"), row.get("meta")
    if not isinstance(prompt, str) or not isinstance(meta, dict):
        raise ValueError(
            f"prompt {prompt!r}, meta a {type(meta).__name__}; expected a text and an object, as published"
        )
    found: dict[str, Any] = {
        field: next((meta[name] for name in names if name in meta), None) for field, names in PUBLISHED_KEYS.items()
    }
    for side in ("target", "source"):
        if found[f"{side}_box"] is not None:
            box = read_box(f"{side}_box", found[f"{side}_box"])
            found |= {f"{side}_box": box, f"{side}_answer": box_text(box)}
    kept = {key: value for key, value in meta.items() if not any(key in names for names in PUBLISHED_KEYS.values())}
    stripped = prompt.removeprefix(PLACEHOLDER).strip()
    if stripped != prompt:
        kept["published_prompt"] = prompt
    found |= {name: row.get(name) for name in ("id", "task", "target_image", "source_image")}
    return Pair(**found, prompt=stripped, meta=kept)
