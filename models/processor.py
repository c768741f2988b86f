"""Can a checkpoint read a prompt? The files of its tokenizer and image processor, and whether a text survives them.

Transformers 5.23 accepts a Qwen2 folder without `tokenizer.json`: it makes a tokenizer of a few special tokens, which
drops all other text without a message. So the files are checked before loading, and a text is encoded and decoded
afterwards.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.families import Family
from models.foreign import CONFIG_FILE
from models.layout import config_value
from models.shards import parse_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files that hold a vocabulary, in either form."""
TEMPLATE = "chat_template.jinja"
IMAGE_PROCESSOR = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
"""Holds the image processor too where Transformers 5 wrote it."""
NEAR = ("", "final", "huggingface")
"""Folders beside and above a checkpoint that often hold what a training framework left out of it."""
PROBE = "Question: is 3/4 + 0.25 = 1?\n\n\tAnswer: \\boxed{yes}, \u00e9t\u00e9 \u56fe \u2220ABC 90\u00b0."
"""Composed characters only: Qwen's tokenizers compose the others (NFC)."""


def missing_files(directory: Path, family: Family) -> list[str]:
    """Returns the tokenizer's and image processor's files that a folder lacks."""

    def has(name: str) -> bool:
        return (directory / name).is_file()

    missing = [] if has(TOKENIZER_CONFIG) else [TOKENIZER_CONFIG]
    if not any(all(map(has, files)) for files in VOCABULARIES):
        missing.append(VOCABULARIES[0][0])
    if not family.text_only and not has(IMAGE_PROCESSOR) and not _holds_image_processor(directory / PROCESSOR_CONFIG):
        missing.append(IMAGE_PROCESSOR)
    return missing


def check_files(directory: Path, family: Family) -> None:
    """Checks that the files without which no prompt can be read exist and are JSON.

    Raises:
        ValueError: naming the files, and where to copy them from.
    """
    missing = missing_files(directory, family)
    if not missing:
        for name in (TOKENIZER_CONFIG, VOCABULARIES[0][0], IMAGE_PROCESSOR, PROCESSOR_CONFIG):
            if (directory / name).is_file():
                parse_json_object((directory / name).read_bytes(), str(directory / name))
        return
    parts = "a tokenizer" if family.text_only else "a tokenizer and an image processor"
    raise ValueError(
        f"{directory}: lacks {', '.join(missing)}; expected the files of {parts} beside the weights: "
        f"copy them from {_owner(directory, family)}"
    )


def check_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", directory: Path, config: dict[str, Any], family: Family
) -> None:
    """Rejects a tokenizer that loses text, or that does not fit the model's embedding matrix or picture token.

    Raises:
        ValueError: naming the folder and what was found.
    """
    kept = tokenizer.decode(
        tokenizer.encode(PROBE, add_special_tokens=False),
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    if kept != PROBE:
        raise ValueError(
            f"{directory}: its tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) turns {PROBE[:30]!r}… "
            f"into {kept[:30]!r}; expected the same text: copy the tokenizer's files from {_owner(directory, family)}"
        )
    rows = config_value(config, *family.num_layers_key[:-1], "vocab_size")
    last, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    if type(rows) is int and last >= rows:
        raise ValueError(
            f"{directory}: its tokenizer gives {token!r} the id {last}, while {CONFIG_FILE} asks for {rows} embeddings "
            f"(vocab_size); expected ids below that: copy the tokenizer's files from {_owner(directory, family)}"
        )


def check_picture_token(processor: Any, directory: Path, config: dict[str, Any]) -> None:
    """Raises ValueError if the processor marks pictures by another token than the model expects."""
    expected, found = config.get("image_token_id"), processor.image_token_id
    if expected is not None and found != expected:
        raise ValueError(
            f"{directory}: its processor marks pictures by {processor.image_token!r} with the id {found}, "
            f"{CONFIG_FILE} expects {expected} (image_token_id); copy processor and tokenizer from the same checkpoint "
            "as the weights"
        )


def check_template(processor: Any, directory: Path) -> None:
    """Raises ValueError if the chat template cannot render a question; a model without one passes."""
    template = processor.chat_template or getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if not isinstance(template, str):
        return
    seeing = hasattr(processor, "tokenizer")
    content: Any = [{"type": "image"}, {"type": "text", "text": PROBE}] if seeing else PROBE
    try:
        processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever the template's code raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        file = TEMPLATE if (directory / TEMPLATE).is_file() else TOKENIZER_CONFIG
        raise ValueError(
            f"{directory}: its chat template ({file}) cannot be rendered ({reason}); copy it from the checkpoint that "
            "the weights come from"
        ) from error


def _holds_image_processor(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "image_processor" in content


def _owner(directory: Path, family: Family) -> str:
    """Returns the folder that has the files, if one nearby has, or else what usually has them."""
    absolute = directory.absolute()
    for place in (absolute.parent / name for name in NEAR):
        if place != absolute and place.is_dir() and not missing_files(place, family):
            return str(place)
    return f"the checkpoint that training started from, or from the repository of this {family.model_type} on the hub"
