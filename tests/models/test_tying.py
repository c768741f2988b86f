"""Tied or not, by both flags of a configuration and by what is on disk: as the loaded model has it, or refused."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.checkpoint import open_checkpoint, stored_layout
from models.completeness import check_against_config, check_complete
from models.families import FAMILIES
from models.layout import layout_of, stored_tensors
from tests.models.damage import CONFIG, EMBED, on_disk, read_tensors, write_tensors

FIXTURES = {
    "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "pocket", "qwen3_vl": "qwen3_vl", "qwen3_5": "qwen3_5", "qwen2": "qwen2",
    "qwen3": "qwen3", "internvl": "internvl", "gemma4": "gemma4",
}  # fmt: skip
HEAD = "lm_head.weight"
FLAGS: tuple[bool | None, ...] = (None, False, True)
HEADS = ("none", "equal", "differs")


def set_flags(directory: Path, outer: bool | None, nested: bool | None) -> None:
    path = directory / CONFIG
    config = json.loads(path.read_text())
    for part, flag in ((config, outer), (config.get("text_config", {}), nested)):
        part.pop("tie_word_embeddings", None)
        if flag is not None:
            part["tie_word_embeddings"] = flag
    path.write_text(json.dumps(config))


def set_head(directory: Path, head: str) -> None:
    tensors = read_tensors(directory)
    name = next((name for name in tensors if name.endswith(HEAD)), HEAD)  # as the family spells it on disk
    tensors.pop(name, None)
    if head != "none":
        tensors[name] = tensors[on_disk(tensors, EMBED)] + (head == "differs")
    write_tensors(directory, tensors)


def check(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    check_against_config(checkpoint)
    check_complete(checkpoint, layout_of(directory))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FIXTURES)
def test_both_flags_are_read_as_transformers_loads_them(
    family: str, head: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.getfixturevalue(f"{FIXTURES[family]}_checkpoint")
    directory = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    set_head(directory, head)
    auto_class = getattr(transformers, FAMILIES[family].auto_class)
    for outer, nested in itertools.product(FLAGS, FLAGS if not FAMILIES[family].text_only else (None,)):
        set_flags(directory, outer, nested)
        case = (family, head, outer, nested)
        model, found = auto_class.from_pretrained(directory, output_loading_info=True)
        loaded = set(stored_tensors(model))
        try:
            check(directory)
        except ValueError as error:
            made_up = HEAD in found["missing_keys"]
            misled = head == "differs" and outer is not False  # the configuration says tied, the weights do not
            assert made_up or misled, (case, str(error))
            assert "\n" not in str(error) and ("lacks" if made_up else "differs from") in str(error), case
            continue
        assert not found["missing_keys"], case
        layout, stored = layout_of(directory), stored_layout(open_checkpoint(directory))
        assert set(layout.parameters) == set(stored.parameters) == loaded, case
        assert layout.tied == stored.tied == (HEAD not in loaded), case


def test_the_advice_names_the_flag_that_transformers_reads(qwen3_vl_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(qwen3_vl_checkpoint, tmp_path / "checkpoint"))
    set_flags(directory, False, True)
    checkpoint = open_checkpoint(directory)
    layout = layout_of(directory)
    for refused in (lambda: check_against_config(checkpoint), lambda: check_complete(checkpoint, layout)):
        with pytest.raises(ValueError, match=r"lacks 'lm_head.*text_config ties it.*at the top of config\.json.* true"):
            refused()
    set_flags(directory, True, True)
    check(directory)
    set_head(directory, "differs")
    with pytest.raises(ValueError, match=r"tie_word_embeddings and text_config\.tie_word_embeddings to false"):
        check(directory)
    set_flags(directory, False, False)
    check(directory)


def test_a_head_that_lora_trained_on_a_tied_model_is_read_as_it_loads(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """PEFT unties the model at the top of its configuration only, when it merges `modules_to_save`."""
    from peft import LoraConfig, get_peft_model

    from models.loading import load_model

    model: Any = load_model(pocket_checkpoint)
    lora: LoraConfig = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted: Any = get_peft_model(model, lora)
    with torch.no_grad():
        adapted.get_output_embeddings().weight.add_(1)
    merged = adapted.merge_and_unload()
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "merged"))
    merged.save_pretrained(directory)
    set_flags(directory, False, True)
    check(directory)
    checkpoint, loaded = open_checkpoint(directory), load_model(directory)
    assert torch.equal(checkpoint.tensor(HEAD), loaded.get_output_embeddings().weight)
    assert HEAD in layout_of(directory).parameters and not layout_of(directory).tied
