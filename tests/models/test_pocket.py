import json
import unicodedata
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from models.layout import Layout
from models.pocket import CHECKPOINT_DIR, PocketShape, main, write_pocket_checkpoint
from tracking.run import RUN_FILE, read_run

SMALL = PocketShape(num_layers=3, hidden_size=64, mlp_size=64, num_heads=2, num_kv_heads=1, num_vision_blocks=1)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def processor(pocket_checkpoint: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(pocket_checkpoint)


def test_model_and_processor_are_the_real_classes_and_see_an_image(
    pocket_checkpoint: Path, processor: Qwen2_5_VLProcessor
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(pocket_checkpoint).eval()
    assert type(model) is Qwen2_5_VLForConditionalGeneration and type(processor) is Qwen2_5_VLProcessor
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many objects are there?"}]}
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    logits = []
    for colour in ("red", "blue"):
        image = Image.new("RGB", (112, 56), colour)  # 4 x 2 cells of 28 pixels
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        assert (inputs.input_ids == model.config.image_token_id).sum() == 4 * 2
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert logits[0].isfinite().all() and not torch.equal(logits[0], logits[1])


def test_default_shape_has_about_a_million_parameters(pocket_layout: Layout) -> None:
    assert 0.8e6 < pocket_layout.num_elements < 1.6e6


def test_seed_alone_determines_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(123)
    write_pocket_checkpoint(tmp_path / "a", shape=SMALL, seed=5)
    torch.manual_seed(321)
    write_pocket_checkpoint(tmp_path / "b", shape=SMALL, seed=5)
    write_pocket_checkpoint(tmp_path / "c", shape=SMALL, seed=6)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert again == first
    assert {name for name in first if other[name] != first[name]} == {"model.safetensors"}


@pytest.mark.parametrize(
    "text",
    [
        "How many objects are there ?",
        "don't , can't . 12 , 345.5 !  two  spaces\n\n\ttab ",
        "Grüße, 日本語のテキスト, עברית, العربية, 👩‍👩‍👧 🎲",
        "\\boxed{\\frac{1}{2}} = 0.5 %€",
        "<think>two and three</think> <answer>5</answer>",
        "".join(chr(code) for code in range(1, 0x500)),
    ],
)
def test_any_text_round_trips(processor: Qwen2_5_VLProcessor, text: str) -> None:
    text = unicodedata.normalize("NFC", text)  # Qwen's tokenizer normalises
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_tags_are_single_tokens_that_a_grader_still_sees(processor: Qwen2_5_VLProcessor, tag: str) -> None:
    tokenizer = processor.tokenizer
    (token,) = tokenizer.encode(tag)
    assert tokenizer.encode(f"red{tag}blue").count(token) == 1
    assert tokenizer.decode([token], skip_special_tokens=True) == tag


def test_end_of_turn_is_no_part_of_an_answer(pocket_checkpoint: Path, processor: Qwen2_5_VLProcessor) -> None:
    tokenizer = processor.tokenizer
    tokens = tokenizer.encode("<answer>5</answer><|im_end|>")
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "<answer>5</answer>"
    generation = json.loads((pocket_checkpoint / "generation_config.json").read_text())
    assert generation["eos_token_id"] in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_command_writes_a_finished_run_and_does_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--output-dir", str(tmp_path / "out"), "--seed", "5"]
    argv += [f"--{name}={value}" for name, value in asdict(SMALL).items()]
    main(argv)
    state = read_run(tmp_path / "out")
    assert state["status"] == "finished" and state["settings"] == {"seed": 5, **asdict(SMALL)}
    checkpoint = tmp_path / "out" / CHECKPOINT_DIR
    assert str(checkpoint) in capsys.readouterr().out
    written = {file: file.stat().st_mtime_ns for file in [tmp_path / "out" / RUN_FILE, *checkpoint.iterdir()]}
    main(argv)
    assert {file: file.stat().st_mtime_ns for file in written} == written


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--num-layers", "0", "num_layers is 0; it must be at least 1"),
        ("--vision-mlp-size", "-8", "vision_mlp_size is -8; it must be at least 1"),
        ("--num-kv-heads", "3", r"must be a multiple of num_kv_heads \(3\)"),
        ("--hidden-size", "100", "hidden_size 100 must be a multiple of"),
    ],
)
def test_bad_shape_is_refused_before_anything_is_written(tmp_path: Path, flag: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["--output-dir", str(tmp_path / "out"), flag, value])
    assert not (tmp_path / "out").exists()
