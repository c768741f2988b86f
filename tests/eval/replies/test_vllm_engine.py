"""vLLM's real engine, started once on the CPU, against Transformers: equal replies, draws, limits, continuations."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data_builders.prompt_sets.prompts import read_prompts
from eval.replies.engines import ENGINES, VLLM, EngineOptions, HuggingFace, Request
from eval.replies.generation import Generation, render_prompt, resolved_settings, tokenizer_of
from eval.replies.pictures import Picture, open_picture, pixel_limits
from eval.replies.sampling import SamplingArguments
from eval.replies.subject import open_subject
from eval.run import EvaluationArguments, evaluate
from eval.support.command import main as support
from models.loading import load_processor
from models.pocket import PocketShape, write_pocket_checkpoint
from tracking.records import read_records

pytestmark = pytest.mark.vllm

NEAR_TIE = 1e-3
"""Nats between the two best tokens, below which either may be taken."""
TOGETHER = 400
"""Replies asked of vLLM at once: all."""
CPU_STEP_TOKENS = 4096
"""What vLLM 0.31 reads at once on a CPU; a prompt that does not fit is read in two parts."""


@pytest.fixture(scope="session")
def started(trained_pocket: Path) -> Iterator[VLLM]:
    """An engine of draws."""
    processor = load_processor(trained_pocket)
    engine = VLLM(open_subject(str(trained_pocket)), processor, options(trained_pocket, temperature=1.0))
    assert engine._offspring.alive()
    yield engine
    engine.close()
    assert engine._offspring.alive() == []


def options(checkpoint: Path, *, temperature: float = 0.0) -> EngineOptions:
    processor = load_processor(checkpoint)
    return EngineOptions(
        settings=resolved_settings(checkpoint, processor, 32),
        sampling=SamplingArguments(temperature=temperature),
        limits=pixel_limits(processor, min_pixels=None, max_pixels=None),
        repetition_window=128,
        dtype="auto",
        attn_implementation="sdpa",
    )


class Lent:
    """The engine that is started already, for one evaluation."""

    def __init__(self, engine: VLLM, options: EngineOptions) -> None:
        self._engine, self._options = engine, options
        self.dtype = engine.dtype
        self.num_requests: list[int] = []

    def answer(self, requests: Any) -> list[Generation]:
        self._engine._options = self._options
        self.num_requests.append(len(requests))
        return self._engine.answer(requests)

    def close(self) -> None:
        """It goes on for the next."""


@pytest.fixture
def lent(started: VLLM, monkeypatch: pytest.MonkeyPatch) -> list[Lent]:
    """Every evaluation of a test gets the started engine; what each got of it."""
    given: list[Lent] = []

    def lend(_: Any, __: Any, options: EngineOptions) -> Lent:
        given.append(Lent(started, options))
        return given[-1]

    monkeypatch.setitem(ENGINES, "vllm", lend)
    return given


def run(engine: str, model: Path, prompts: Path, output_dir: Path, **values: Any) -> list[dict[str, Any]]:
    sampling = values.pop("sampling", SamplingArguments())
    size = {"vllm": TOGETHER, "huggingface": 32}[engine]
    given = {"max_new_tokens": 32, "batch_size": size, "dtype": "float32", **values}
    arguments = EvaluationArguments(
        model=str(model), tasks=[f"{prompts}:test"], output_dir=str(output_dir), engine=engine, **given
    )
    return read_records(evaluate(arguments, sampling) / "records.jsonl")


def gap_at_first_difference(model: Path, prompts: Path, record: dict[str, Any], other: str) -> float:
    """Returns how far apart the two best tokens were, in nats, in Transformers, where two replies part."""
    import torch

    subject = open_subject(str(model))
    loaded, processor = subject.load(dtype="float32", attn_implementation="sdpa")
    (prompt,) = [prompt for prompt in read_prompts(prompts, "test") if prompt.id == record["id"]]
    text = render_prompt(processor, prompt, style="plain", system_prompt=None)
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    black = record["condition"] != "given"
    pictures = [open_picture(Picture(prompts / image, black=black), limits) for image in prompt.images]
    ours, theirs = (tokenizer_of(processor)(reply)["input_ids"] for reply in (record["response"], other))
    same = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    shared = ours[: min(len(ours), len(theirs)) if same is None else same]
    full = text + tokenizer_of(processor).decode(shared)
    inputs = processor(text=[full], return_tensors="pt", **({"images": pictures} if pictures else {}))
    with torch.inference_mode():
        best = loaded(**inputs).logits[0, -1].log_softmax(-1).topk(2).values
    return float(best[0] - best[1])


def assert_equal_but_for_near_ties(
    model: Path, prompts: Path, one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    assert [record["key"] for record in one] == [record["key"] for record in other]
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a["response"] != b["response"]]
    assert len(differing) <= 0.05 * len(one)
    for a, b in differing:
        assert gap_at_first_difference(model, prompts, a, b["response"]) < NEAR_TIE, (a["key"], a["response"])
    for a, b in zip(one, other, strict=True):
        if a["response"] == b["response"]:
            assert {**a, "num_tokens": 0} == {**b, "num_tokens": 0}
            assert a["num_tokens"] == b["num_tokens"]


def test_greedy_replies_are_transformers(
    lent: list[Lent], trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    """300 prompts, two thirds of them with a picture; `dtype` auto is the stored one, float32."""
    ours = run("huggingface", trained_pocket, pocket_prompts, tmp_path / "hf")
    theirs = run("vllm", trained_pocket, pocket_prompts, tmp_path / "vllm")
    assert len(ours) == 300 and {bool(record["images_sha256"]) for record in ours} == {True, False}
    assert len({record["response"] for record in ours}) > 30
    assert_equal_but_for_near_ties(trained_pocket, pocket_prompts, ours, theirs)
    noted = json.loads((tmp_path / "vllm" / "run.json").read_text())["attempts"][0]
    assert noted["loaded_dtype"] == "float32"


def test_the_gap_at_a_difference_is_that_of_the_two_best_tokens(trained_pocket: Path, pocket_prompts: Path) -> None:
    """The measure of near-ties, where there is none: the best token was surer than the second."""
    processor = load_processor(trained_pocket)
    engine = HuggingFace(open_subject(str(trained_pocket)), processor, options(trained_pocket))
    prompt = next(prompt for prompt in read_prompts(pocket_prompts, "test") if not prompt.images)
    (reply,) = engine.answer([Request(render_prompt(processor, prompt, style="plain", system_prompt=None))])
    record = {"id": prompt.id, "condition": "given", "response": reply.response}
    assert gap_at_first_difference(trained_pocket, pocket_prompts, record, "triangle") > 0.01


def test_limits_and_black_pictures_are_transformers(
    lent: list[Lent], trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    values = {"max_new_tokens": 5, "conditions": ["given", "black"]}
    ours = run("huggingface", trained_pocket, pocket_prompts, tmp_path / "hf", **values)
    theirs = run("vllm", trained_pocket, pocket_prompts, tmp_path / "vllm", **values)
    assert_equal_but_for_near_ties(trained_pocket, pocket_prompts, ours, theirs)
    assert {record["finish_reason"] for record in theirs} == {"stop", "length"}
    assert all((record["num_tokens"] == 5) == (record["finish_reason"] == "length") for record in theirs)
    replies = {record["key"]: record["response"] for record in theirs}
    black = [record for record in theirs if record["condition"] == "black"]
    assert len(black) == 200
    seen = [record for record in black if record["response"] != replies[f"{record['task']}/{record['id']}"]]
    assert len(seen) > 20, "the model sees whether its picture is black"


def test_draws_agree_and_more_is_drawn_at_once_than_vllm_reads_at_once(
    lent: list[Lent], trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    sampling = SamplingArguments(temperature=1.0, num_samples=2)
    run("huggingface", trained_pocket, pocket_prompts, tmp_path / "hf", sampling=sampling)
    drawn = run("vllm", trained_pocket, pocket_prompts, tmp_path / "vllm", sampling=sampling)
    (engine,) = lent
    processor = load_processor(trained_pocket)
    text = render_prompt(processor, read_prompts(pocket_prompts, "test")[0], style="plain", system_prompt=None)
    assert max(engine.num_requests) * len(tokenizer_of(processor)(text)["input_ids"]) > CPU_STEP_TOKENS
    again = run("vllm", trained_pocket, pocket_prompts, tmp_path / "again", sampling=sampling)
    assert sum(one["response"] != other["response"] for one, other in zip(drawn, again, strict=True)) <= 12
    assert len({record["response"] for record in drawn if record["id"] == drawn[0]["id"]}) > 1
    state = json.loads((tmp_path / "vllm" / "run.json").read_text())
    state["settings"] |= {"engine": "huggingface", "batch_size": 32}  # else they are not compared
    (tmp_path / "vllm" / "run.json").write_text(json.dumps(state))
    support([f"hf={tmp_path / 'hf'}", f"vllm={tmp_path / 'vllm'}", "--baseline", "hf",
             "--output-dir", str(tmp_path / "support")])  # fmt: skip
    changes = pd.read_csv(tmp_path / "support" / "changes.csv")
    passed = changes[changes["metric"] == "pass@k"]
    assert len(passed) == 3 * 2  # pass@1 and 2 of three abilities
    assert ((passed["low"] <= 0) & (passed["high"] >= 0)).all()
    rates = pd.read_csv(tmp_path / "support" / "support.csv")
    assert (rates.loc[rates["metric"] == "pass@k", "value"] > 0).all(), "the model is sometimes right"


def test_a_killed_run_continues_to_the_same_tables(
    lent: list[Lent], trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    whole = run("vllm", trained_pocket, pocket_prompts, tmp_path / "whole", batch_size=64)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    lines = (tmp_path / "cut" / "records.jsonl").read_bytes().splitlines(keepends=True)
    done = [line for line in lines if json.loads(line)["images_sha256"]]  # prompts with pictures come first
    torn = next(line for line in lines if line not in done)[:20]
    (tmp_path / "cut" / "records.jsonl").write_bytes(b"".join(done) + torn)
    (tmp_path / "cut" / "scores.csv").unlink()
    state = json.loads((tmp_path / "cut" / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "cut" / "run.json").write_text(json.dumps(state))
    continued = run("vllm", trained_pocket, pocket_prompts, tmp_path / "cut", batch_size=64)
    assert_equal_but_for_near_ties(trained_pocket, pocket_prompts, whole, continued)
    assert (sum(lent[0].num_requests), sum(lent[1].num_requests)) == (300, 100)
    if whole == continued:
        assert (tmp_path / "cut" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()


def test_heads_that_vllm_does_not_know_are_refused_in_one_line(pocket_prompts: Path, tmp_path: Path) -> None:
    write_pocket_checkpoint(tmp_path / "narrow", shape=PocketShape(), seed=0)
    with pytest.raises(
        ValueError, match=r"narrow has heads of 16, and vLLM's attention on CPUs supports heads of 32, 64"
    ):
        run("vllm", tmp_path / "narrow", pocket_prompts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
