"""Rollouts with vLLM, the parts that need no engine: prompts, gaps, what rounding explains, versions, records."""

import itertools
import json
import math
import random
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import train.rollouts.setup as rollout_setup
from models.loading import load_model
from tracking.command import REPOSITORY_ROOT
from train.rollouts.checks import check_covered, check_prompts, check_sent, only_one
from train.rollouts.gap import GAP_FACTOR, Gap, coarser, exceeds, gaps_by_kind, measure_gap, rounding_noise
from train.rollouts.generation_defaults import describe, set_aside
from train.rollouts.guard import Pass, RolloutGuard
from train.rollouts.record import RolloutRecord, write_rollout
from train.rollouts.setup import RolloutArguments, check_context, check_rollout, check_versions
from train.rollouts.vllm import (
    cache_bytes,
    kept_random_numbers,
    one_token_a_picture,
)

IMAGE, START, END = 9, 7, 8


@pytest.mark.parametrize(
    ("ids", "num_images", "expected"),
    [
        ([1, START, IMAGE, IMAGE, IMAGE, END, 2], 1, [1, START, IMAGE, END, 2]),
        ([START, IMAGE, IMAGE, END, START, IMAGE, END, 3], 2, [START, IMAGE, END, START, IMAGE, END, 3]),
        ([IMAGE, IMAGE, 1, IMAGE], 2, [IMAGE, 1, IMAGE]),
        ([1, 2, 2, 3], 0, [1, 2, 2, 3]),
        ([], 0, []),
    ],
)
def test_each_picture_becomes_one_token_and_other_tokens_stay(
    ids: list[int], num_images: int, expected: list[int]
) -> None:
    assert one_token_a_picture(ids, IMAGE, num_images=num_images) == expected


def test_marks_are_left_out_beside_pictures_alone() -> None:
    """vLLM adds them with the image tokens; in the text they are the reader's own."""
    ids = [START, 5, START, IMAGE, IMAGE, END, 6, START, IMAGE, END, END]
    assert one_token_a_picture(ids, IMAGE, num_images=2, marks=[START, END]) == [START, 5, IMAGE, 6, IMAGE, END]


def test_a_prompt_with_more_pictures_than_runs_is_no_prompt_of_ours() -> None:
    with pytest.raises(AssertionError, match="1 runs of image tokens, 2 images"):
        one_token_a_picture([START, IMAGE, IMAGE, END], IMAGE, num_images=2)


def test_another_prompt_is_named_by_its_row_lengths_and_first_token() -> None:
    check_prompts([[1, 2], [3]], [[1, 2], [3]])
    with pytest.raises(
        RuntimeError, match=r"prompt 1 of the batch has 3 tokens in the trainer and 5 in vLLM.* token 2 on"
    ):
        check_prompts([[1], [4, 5, 6]], [[1], [4, 5, 5, 5, 6]])
    with pytest.raises(RuntimeError, match="differ from token 2 on"):
        check_prompts([[4, 5]], [[4, 5, 6]])
    with pytest.raises(RuntimeError, match="vLLM answered 1 prompts; 2 were asked"):
        check_prompts([[1], [2]], [[1]])


def test_a_weight_that_no_sync_reaches_is_named() -> None:
    engine = {"qkv": torch.zeros(6), "embed_tokens.weight": torch.zeros(8)}
    check_covered({"qkv": 6, "embed_tokens.weight": 7}, engine)  # rows that pad the vocabulary
    with pytest.raises(RuntimeError, match="fills 4 of 6 elements of vLLM's qkv"):
        check_covered({"qkv": 4, "embed_tokens.weight": 8}, engine)
    with pytest.raises(RuntimeError, match=r"fills 0 of 8 elements of vLLM's embed_tokens\.weight"):
        check_covered({"qkv": 6}, engine)
    check_covered({"qkv": 12, "embed_tokens.weight": 16}, engine, is_divided=True)  # each of two processes holds half
    with pytest.raises(RuntimeError, match="fills 0 of 6 elements of vLLM's qkv"):
        check_covered({"embed_tokens.weight": 16}, engine, is_divided=True)


def test_a_tensor_that_the_engine_took_nowhere_is_named() -> None:
    assert only_one("layers.0.q_proj", {"layers.0.qkv_proj"}) == "layers.0.qkv_proj"
    with pytest.raises(RuntimeError, match=r"put the trainer's rope\.inv_freq nowhere; expected one weight"):
        only_one("rope.inv_freq", set())


def test_the_cache_holds_keys_and_values_of_every_token(pocket_checkpoint: Path) -> None:
    """Six layers, four heads of 16 for keys and as many for values, four bytes each."""
    config = load_model(pocket_checkpoint).config
    assert cache_bytes(config, 10, "float32") == 10 * 6 * 4 * 16 * 2 * 4
    assert cache_bytes(config, 10, "bfloat16") == 10 * 6 * 4 * 16 * 2 * 2


def test_a_trained_weight_that_was_not_sent_is_named() -> None:
    check_sent({"a", "b"}, {"a", "b", "c"}, {"a", "b"})
    with pytest.raises(RuntimeError, match=r"left out b \(1 such\)"):
        check_sent({"a"}, {"a", "b", "c"}, {"a", "b"})


def test_a_gap_is_the_mean_percentile_and_worst_reply_of_absolute_differences() -> None:
    rng = np.random.default_rng(0)
    engine, trainer = rng.normal(size=(5, 40)), rng.normal(size=(5, 40))
    mask = rng.random((5, 40)) < 0.7
    mask[3] = False  # a reply without a token
    gap = measure_gap(*(torch.tensor(values) for values in (engine, trainer, mask)))
    differences = np.abs(engine - trainer)
    assert gap is not None
    assert gap.num_tokens == mask.sum()
    assert gap.mean == pytest.approx(differences[mask].mean())
    assert gap.p99 == pytest.approx(np.quantile(differences[mask], 0.99))
    assert gap.worst_reply == pytest.approx(
        max(row[kept].mean() for row, kept in zip(differences, mask, strict=True) if kept.any())
    )


def test_tokens_that_the_engine_could_not_score_are_left_out_and_those_of_the_trainer_are_not() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    nan = float("nan")
    engine_lacks = measure_gap(torch.tensor([[nan, -1.0, -2.0]]), torch.tensor([[-9.0, -1.0, -2.5]]), mask)
    assert engine_lacks is not None
    assert (engine_lacks.num_tokens, engine_lacks.mean) == (2, 0.25)
    trainer_lacks = measure_gap(torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[nan, -1.0, -1.0]]), mask)
    assert trainer_lacks is not None
    assert exceeds(trainer_lacks, engine_lacks)
    assert measure_gap(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)) is None


def test_a_cut_distribution_may_give_more_but_never_less() -> None:
    trainer, mask = torch.full((1, 4), -2.0), torch.ones(1, 4, dtype=torch.bool)
    slack = -math.log(0.95)
    gap = measure_gap(trainer + torch.tensor([[0.0, slack / 2, slack, slack + 0.3]]), trainer, mask, slack)
    assert gap is not None
    assert gap.mean == pytest.approx(0.3 / 4, abs=1e-6)
    below = measure_gap(trainer - 0.2, trainer, mask, slack)
    assert below is not None
    assert below.mean == pytest.approx(0.2)


def test_prompts_with_and_without_pictures_are_told_apart() -> None:
    engine, trainer = torch.tensor([[-1.0], [-2.0], [-3.0]]), torch.tensor([[-1.5], [-2.0], [-3.1]])
    found = gaps_by_kind(engine, trainer, torch.ones(3, 1), [True, False, True])
    assert found["text"].mean == 0
    assert found["images"].mean == pytest.approx(0.3)
    assert set(gaps_by_kind(engine, trainer, torch.ones(3, 1), [False] * 3)) == {"text"}


def a_gap(mean: float, worst: float) -> Gap:
    return Gap(num_tokens=100, mean=mean, p99=worst, worst_reply=worst)


def test_one_wrong_reply_is_found_where_the_mean_hides_it() -> None:
    noise = a_gap(0.002, 0.01)
    assert not exceeds(a_gap(0.002 * GAP_FACTOR, 0.01 * GAP_FACTOR), noise)
    assert exceeds(a_gap(0.004, 0.3), noise)
    assert exceeds(a_gap(0.05, 0.06), noise)
    assert not exceeds(a_gap(2e-6, 1e-5), a_gap(0.0, 0.0)), "a millionth of a nat is nobody's fault"


def test_the_coarser_dtype_rules() -> None:
    assert coarser("float32", "bfloat16") == coarser("bfloat16", "float16") == "bfloat16"
    assert coarser("float32", "float32") == "float32"


def _log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return scores.gather(-1, ids[:, 1:, None])[..., 0]


def test_the_noise_explains_what_computing_in_bfloat16_changes(pocket_checkpoint: Path) -> None:
    """The independent computation is the model itself, loaded in bfloat16."""
    model, rounded = load_model(pocket_checkpoint), load_model(pocket_checkpoint, dtype=torch.bfloat16)
    ids = torch.randint(20, 300, (8, 40), generator=torch.Generator().manual_seed(1))
    exact, real = _log_probs(model, ids), _log_probs(rounded, ids)
    state = torch.get_rng_state()
    with rounding_noise(model, "bfloat16"):
        noisy = _log_probs(model, ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(_log_probs(model, ids), exact), "the noise ends with its context"
    explained, found = (exact - noisy).abs().mean(), (exact - real).abs().mean()
    assert 0.4 < found / explained < 2.5


def test_the_guard_measures_rounding_at_first_every_so_often_and_before_it_stops_a_run(pocket_checkpoint: Path) -> None:
    model = load_model(pocket_checkpoint)
    ids = torch.randint(20, 300, (4, 20), generator=torch.Generator().manual_seed(1))
    trainer = _log_probs(model, ids)
    guard = RolloutGuard(dtype="bfloat16", engine="vllm 1", max_gap=None)
    calls = []

    def score() -> torch.Tensor:
        calls.append(1)
        return _log_probs(model, ids)

    def a_pass(engine: torch.Tensor) -> Pass:
        return Pass(
            engine=engine, trainer=trainer, mask=torch.ones_like(ids[:, 1:]), has_images=[True] * 2 + [False] * 2
        )

    found = guard.compare(a_pass(trainer + 0.001), model, score, "cpu", step=0)
    assert {kind: gap.mean for kind, gap in found.items()} == pytest.approx({"text": 0.001, "images": 0.001}, rel=1e-3)
    guard.compare(a_pass(trainer - 0.001), model, score, "cpu", step=49)
    assert len(calls) == 1
    for _ in range(2):  # the passes of one step
        guard.compare(a_pass(trainer - 0.001), model, score, "cpu", step=50)
    assert len(calls) == 2
    wrong = trainer.clone()
    wrong[1] -= 3
    with pytest.raises(RuntimeError, match=r"in prompts with pictures: .* no step was taken"):
        guard.compare(a_pass(wrong), model, score, "cpu", step=51)
    assert len(calls) == 3


def test_a_bound_of_ones_own_replaces_what_rounding_explains(pocket_checkpoint: Path) -> None:
    trainer = torch.full((2, 3), -1.0)
    work = Pass(engine=trainer + 0.2, trainer=trainer, mask=torch.ones(2, 3), has_images=[False, False])
    model = load_model(pocket_checkpoint)
    RolloutGuard(dtype="float32", engine="vllm 1", max_gap=0.3).compare(work, model, lambda: trainer, "cpu", step=0)
    with pytest.raises(RuntimeError, match=r"without pictures: .* by 0\.2 nats .* at most rollout_max_gap 0\.1"):
        RolloutGuard(dtype="float32", engine="vllm 1", max_gap=0.1).compare(work, model, lambda: trainer, "cpu", step=0)


def test_an_engine_that_scores_nothing_is_not_taken_for_one_without_a_gap(pocket_checkpoint: Path) -> None:
    """Where its numbers are NaN, TRL hands on what it sampled without a log-probability."""
    trainer = torch.full((2, 10), -1.0)
    model = load_model(pocket_checkpoint)
    guard = RolloutGuard(dtype="float32", engine="vllm 1", max_gap=None)
    engine = trainer.clone()
    engine[0, :2] = float("nan")
    work = Pass(engine=engine, trainer=trainer, mask=torch.ones(2, 10), has_images=[False, True])
    guard.compare(work, model, lambda: trainer, "cpu", step=0)
    engine[1] = float("nan")
    with pytest.raises(RuntimeError, match="vllm 1 gave no log-probability for 12 of 20 sampled tokens"):
        guard.compare(work, model, lambda: trainer, "cpu", step=1)
    nobody = Pass(engine=engine, trainer=trainer, mask=torch.zeros(2, 10), has_images=[False, True])
    assert guard.compare(nobody, model, lambda: trainer, "cpu", step=2) == {}


def test_random_numbers_are_those_of_the_run_after_an_engine_seeded_them() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with kept_random_numbers():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected


def training(**changes: Any) -> Any:
    values = {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": False, "device": torch.device("cpu"),
        "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None,
        "vllm_max_model_length": None, "max_completion_length": 8, **changes,
    }  # fmt: skip
    return SimpleNamespace(**values)


def test_a_run_without_vllm_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_setup, "installed_vllm", lambda: None)
    check_rollout(training(use_vllm=False, top_k=5), RolloutArguments())
    with pytest.raises(ValueError, match="vLLM is not installed here; make setup-vllm"):
        check_rollout(training(), RolloutArguments())


def test_versions_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own metadata says which vLLM it knows: 1.16 from 0.22 to 0.31."""
    real = rollout_setup.requires
    known = {"vllm": ["transformers<4,>=3"]}
    monkeypatch.setattr(rollout_setup, "requires", lambda name: known.get(name) or real(name))
    monkeypatch.setattr(rollout_setup, "installed_vllm", lambda: ("vllm", "0.33.0"))
    with pytest.raises(ValueError, match=r"trl .* goes with vLLM .*; found 0\.33\.0; make setup-vllm"):
        check_versions()
    monkeypatch.setattr(rollout_setup, "installed_vllm", lambda: ("vllm", "0.24.0+cu129"))
    monkeypatch.setattr(rollout_setup, "version", lambda name: "0.24.0" if name == "vllm" else version(name))
    with pytest.raises(ValueError, match=r"vllm 0\.24\.0 goes with Transformers .*; found 5\."):
        check_versions()
    known["vllm"] = ["transformers>=5"]
    check_versions()


def test_what_cannot_work_or_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_setup, "check_versions", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_rollout(training(top_k=-1, min_p=0.0, top_p=0.9), RolloutArguments())
    with pytest.raises(ValueError, match=r"server sends weights over NCCL .*; use vllm_mode: colocate"):
        check_rollout(training(vllm_mode="server"), RolloutArguments())
    with pytest.raises(ValueError, match=r"vllm_enable_sleep_mode .* on a CPU; set it to false"):
        check_rollout(training(vllm_enable_sleep_mode=True), RolloutArguments())
    check_rollout(training(vllm_enable_sleep_mode=True, device=torch.device("cuda")), RolloutArguments())
    cut = training(top_k=40, repetition_penalty=1.05)
    with pytest.raises(ValueError, match=r"top_k 40, repetition_penalty 1\.05: .* with rollout_max_gap how far"):
        check_rollout(cut, RolloutArguments())
    check_rollout(cut, RolloutArguments(rollout_max_gap=0.5))
    check_rollout(training(generation_kwargs={"seed": 1}, top_k=-1), RolloutArguments())
    with pytest.raises(ValueError, match=r"^top_k 5, presence_penalty 0\.1: "):
        check_rollout(training(generation_kwargs={"top_k": 5, "presence_penalty": 0.1}), RolloutArguments())


def test_dropout_in_adapters_is_refused_since_the_engine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count as rounding, and a bound of ten times that stops nothing."""
    monkeypatch.setattr(rollout_setup, "check_versions", lambda: None)
    check_rollout(training(), RolloutArguments(), lora_dropout=0.0)
    with pytest.raises(ValueError, match=r"^lora_dropout 0\.05: .*leave these settings out \(lora_dropout: 0\)"):
        check_rollout(training(), RolloutArguments(), lora_dropout=0.05)
    check_rollout(training(), RolloutArguments(rollout_max_gap=0.5), lora_dropout=0.05)


def test_a_context_that_would_cut_replies_is_refused(pocket_checkpoint: Path) -> None:
    own = load_model(pocket_checkpoint).config.get_text_config().max_position_embeddings
    check_context(training(max_completion_length=16, vllm_max_model_length=44), pocket_checkpoint, 28)
    with pytest.raises(ValueError, match=r"^vllm_max_model_length is 43, and the longest prompt \(28 tokens\) .* 44;"):
        check_context(training(max_completion_length=16, vllm_max_model_length=43), pocket_checkpoint, 28)
    check_context(training(max_completion_length=own - 28), pocket_checkpoint, 28)
    with pytest.raises(ValueError, match=f"^max_position_embeddings is {own}, "):
        check_context(training(max_completion_length=own - 27), pocket_checkpoint, 28)
    check_context(training(max_completion_length=own, use_vllm=False), pocket_checkpoint, 28)


@pytest.mark.parametrize(
    "path",
    sorted((REPOSITORY_ROOT / "configs").glob("*/g*po*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_shipped_recipe_can_be_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_setup, "check_versions", lambda: None)
    values = yaml.safe_load(path.read_text())
    asked = {name: values[name] for name in training().__dict__ if name in values}
    check_rollout(training(**asked, device=torch.device("cuda")), RolloutArguments())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rollout_dtype": "fp32"}, "rollout_dtype is 'fp32'; expected auto"),
        ({"rollout_check_tensors": -1}, "rollout_check_tensors is -1"),
        ({"rollout_max_gap": 0.0}, "rollout_max_gap is 0.0"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RolloutArguments(**changes)


def test_what_a_checkpoint_asks_of_generation_does_not_act_on_rollouts(pocket_checkpoint: Path) -> None:
    """The seam: where Transformers no longer fills unset fields from the checkpoint, this is no longer needed."""
    from transformers import GenerationConfig

    model = load_model(pocket_checkpoint)
    end = model.generation_config.eos_token_id
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.min_new_tokens = 5
    model.generation_config.temperature = 0.7
    ids = torch.tensor([[40, 41, 42]])

    def reply() -> list[int]:
        config = GenerationConfig(max_new_tokens=24, do_sample=False)
        tokens: list[int] = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )[0, 3:].tolist()
        return tokens

    def repeats(tokens: list[int]) -> bool:
        pairs = list(itertools.pairwise(tokens))
        return len(set(pairs)) < len(pairs)

    assert not repeats(reply()), "the checkpoint's setting acts"
    found = set_aside(model)
    assert found == {"min_new_tokens": 5, "no_repeat_ngram_size": 2}
    assert "min_new_tokens 5, no_repeat_ngram_size 2: not applied" in describe(found)
    assert repeats(reply()), "an untrained model goes round in circles"
    assert model.generation_config.eos_token_id == end
    assert set_aside(model) == {}


def test_a_record_averages_what_was_logged(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"rollout_gap/text": 0.1, "rollout_gap_p99/text": 1.0, "rollout_rounding/text": 0.2},
        {"rollout_gap/text": 0.3, "rollout_gap_p99/text": 2.0, "rollout_rounding/text": 0.2},
        {"loss": 0.0, "rollout_gap/text": None},
    ]
    record = RolloutRecord(engine="vllm 1", engine_dtype="bfloat16", trainer_dtype="float32", corrected=False)
    write_rollout(tmp_path, record, rows, {"weight_sync": {"num_syncs": 2}})
    found = json.loads((tmp_path / "rollout.json").read_text())
    assert found["gap"] == {"text": {"mean": 0.2, "p99": 1.5, "rounding": 0.2, "num_steps": 2}}
    assert (found["engine"], found["corrected"], found["weight_sync"]) == ("vllm 1", False, {"num_syncs": 2})
