"""Supervised training never learns from an answer that its length limit cut off."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_builders.prompt_sets.prompts import read_prompts, write_prompts
from models.loading import load_processor
from train.running.data import DataArguments, build_dataset, load_prompts
from train.running.examples import count_example_tokens, keep_whole
from train.running.validation import ValidationArguments, load_validation
from train.sft import main


def labels(processor: Any, row: dict[str, Any], max_length: int | None) -> list[int]:
    """Returns the tokens that TRL learns from in one example."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collate = DataCollatorForVisionLanguageModeling(processor, max_length=max_length, completion_only_loss=True)
    made = collate([{**row, "prompt": list(row["prompt"]), "completion": list(row["completion"])}])
    return [int(label) for label in made["labels"][0] if label != -100]


@pytest.mark.parametrize("checkpoint", ["pocket_checkpoint", "qwen3_vl_checkpoint", "internvl_checkpoint"])
@pytest.mark.parametrize(("style", "system_prompt"), [("plain", None), ("think", "Be brief .")])
def test_what_is_kept_is_learned_from_to_its_end_and_what_is_left_out_would_be_cut(
    checkpoint: str, style: str, system_prompt: str | None, tiny_prompts: Path, request: pytest.FixtureRequest
) -> None:
    processor: Any = load_processor(request.getfixturevalue(checkpoint))
    data = DataArguments(prompts=str(tiny_prompts), split="sft", prompt_style=style, system_prompt=system_prompt)
    prompts = load_prompts(data, with_response=True)
    rows = build_dataset(prompts, range(len(prompts)), data, with_response=True)
    whole = {prompt.id: labels(processor, row, None) for prompt, row in zip(prompts, rows, strict=True)}
    counts = [count_example_tokens(prompt, data, processor) for prompt in prompts]
    lengths = [count for count in counts if isinstance(count, int)]
    assert len(lengths) == len(prompts) and len(set(lengths)) > 1
    for limit in sorted({*lengths, min(lengths) - 1, max(lengths) - 1}):
        names = {
            prompt.id for prompt in prompts if whole[prompt.id] == labels(processor, rows[prompts.index(prompt)], limit)
        }
        if not names:
            with pytest.raises(ValueError, match=r"no example of the split sft is left \(cut_answer 11\); max_length"):
                keep_whole(prompts, data, processor, max_length=limit)
            continue
        kept, report = keep_whole(prompts, data, processor, max_length=limit)
        assert {prompt.id for prompt in kept} == names
        assert (report.num_prompts, report.num_kept) == (len(prompts), len(kept))
        assert report.longest_example_tokens == max(lengths)
        num_cut = report.filtered["cut_answer"].count if "cut_answer" in report.filtered else 0
        assert num_cut == len(prompts) - len(kept)


def test_examples_of_a_text_only_model_are_its_tokenizers(qwen2_checkpoint: Path, tiny_prompts: Path) -> None:
    tokenizer: Any = load_processor(qwen2_checkpoint)
    data = DataArguments(prompts=str(tiny_prompts), split="sft", abilities=["reasoning"])
    prompts = load_prompts(data, with_response=True)
    for prompt, row in zip(prompts, build_dataset(prompts, range(5), data, with_response=True), strict=True):
        made = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=True, return_dict=True)
        assert count_example_tokens(prompt, data, tokenizer) == len(made["input_ids"])


def test_examples_that_would_end_a_run_are_left_out_with_their_reason(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_prompts, tmp_path / "prompts"))
    prompts = read_prompts(folder, "sft")
    (folder / prompts[0].images[0]).write_bytes(b"no picture")
    prompts[1] = dataclasses.replace(prompts[1], response="It is <|image_pad|> .")
    prompts[2] = dataclasses.replace(prompts[2], question="What is <|image_pad|> ?")
    data = DataArguments(prompts=str(folder), split="sft")
    kept, report = keep_whole(prompts, data, load_processor(pocket_checkpoint), max_length=None)
    assert kept == prompts[3:]
    assert {name: filtered.examples for name, filtered in report.filtered.items()} == {
        "broken_image": ["i0"],
        "image_token": ["i1", "i2"],
    }


def test_validation_leaves_out_the_same(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    from trl import SFTConfig

    processor: Any = load_processor(pocket_checkpoint)
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    lengths = {p.id: count_example_tokens(p, data, processor) for p in load_prompts(data, with_response=True)}
    limit = max(length for length in lengths.values() if length != max(map(int, lengths.values())))
    training = SFTConfig(
        output_dir=str(tmp_path), max_length=limit, eval_strategy="steps", eval_steps=1, use_cpu=True, bf16=False,
        per_device_eval_batch_size=1, report_to="none",
    )  # fmt: skip
    sets = load_validation(ValidationArguments(validation_split="sft"), data, training, processor, with_response=True)
    assert sets is not None
    num_whole = sum(int(length) <= int(limit) for length in lengths.values())
    assert 0 < sum(map(len, sets.values())) == num_whole < len(lengths)
    assert f"validation: left out: {len(lengths) - num_whole} of 11 examples, cut_answer" in capsys.readouterr().out


def flags(start: Path, prompts: Path, output_dir: Path, max_length: int) -> list[str]:
    values = {
        "model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, "split": "sft", "max_steps": 1,
        "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": "none", "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "max_length": max_length,
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_a_limit_that_cuts_every_answer_is_refused_before_anything_is_written(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"is left \(cut_answer 11\); max_length is 12, the longest example has \d+ to"
    ):
        main(flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", max_length=12))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_says_what_it_leaves_out_and_writes_it(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_prompts, tmp_path / "prompts"))
    prompts = read_prompts(folder, "sft")
    prompts[3] = dataclasses.replace(prompts[3], response=" ".join(["red"] * 200))
    write_prompts(folder, "sft", prompts)
    main(flags(pocket_checkpoint, folder, tmp_path / "run", max_length=150))
    assert "left out: 1 of 11 examples, cut_answer: prompt and response are longer" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert (written["num_kept"], written["filtered"]["cut_answer"]["examples"]) == (10, ["i3"])
