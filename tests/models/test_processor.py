"""Folders without the files that read a prompt, and tokenizers that lose it: one line, before anything is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.loading import load_processor
from tests.models.damage import edit_config

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def whole(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(f"{name}_checkpoint"), tmp_path / "run" / "checkpoint"))


@pytest.mark.parametrize("family", ["pocket", "qwen2", "qwen2_vl", "qwen3_vl", "qwen3_5", "internvl"])
def test_missing_files_are_named_with_who_has_them(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = whole(request, tmp_path, family)
    load_processor(directory)
    files = {path.name for path in directory.iterdir() if path.suffix in (".json", ".jinja")} - {"config.json"}
    own = {*TOKENIZER, *({"processor_config.json"} & files)}
    for name in own:
        content = (directory / name).read_bytes()
        (directory / name).unlink()
        missing = {"processor_config.json": "preprocessor_config.json"}.get(name, name)
        with pytest.raises(ValueError, match=rf"lacks {missing}; .* copy them from the checkpoint that") as caught:
            load_processor(directory)
        assert "\n" not in str(caught.value)
        (directory / name).write_bytes(content)
    shutil.copytree(directory, directory.parent / "final")
    for name in files:
        (directory / name).unlink()
    with pytest.raises(ValueError, match=r"lacks tokenizer_config\.json, tokenizer\.json.* from .*/run/final$"):
        load_processor(directory)


def test_the_older_form_of_a_vocabulary_is_enough(qwen2_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(qwen2_checkpoint, tmp_path / "checkpoint"))
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    (directory / "tokenizer.json").unlink()
    tokenizer: Any = load_processor(directory)
    assert tokenizer.decode(tokenizer.encode("How many?")) == "How many?"


def test_a_tokenizer_that_loses_text_is_refused(qwen2_checkpoint: Path, tmp_path: Path) -> None:
    """As Transformers makes one of a folder whose vocabulary was lost: it drops what it does not know."""
    directory = Path(shutil.copytree(qwen2_checkpoint, tmp_path / "checkpoint"))
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"its tokenizer .* turns 'Question: .* expected the same text: ") as caught:
        load_processor(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["pocket", "qwen2"])
def test_a_tokenizer_of_another_model_is_refused(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = whole(request, tmp_path, family)
    config = json.loads((directory / "config.json").read_text())
    if family == "qwen2":
        edit_config(directory, vocab_size=config["vocab_size"] - 1)
    else:
        edit_config(
            directory, text_config=config["text_config"] | {"vocab_size": config["text_config"]["vocab_size"] - 1}
        )
    with pytest.raises(ValueError, match=r"gives '.*' the id \d+, while config\.json asks for \d+ embeddings"):
        load_processor(directory)


def test_another_picture_token_is_refused(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    expected = json.loads((directory / "config.json").read_text())["image_token_id"]
    edit_config(directory, image_token_id=expected - 1)
    with pytest.raises(ValueError, match=rf"with the id {expected}, config\.json expects {expected - 1}"):
        load_processor(directory)


def test_damaged_files_are_one_line(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    for name in (*TOKENIZER, "processor_config.json"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=str(directory)) as caught:
            load_processor(directory)
        assert "\n" not in str(caught.value)
        (directory / name).write_bytes(content)
