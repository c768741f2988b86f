"""Loss, every gradient and every metric with shared prompts, against TRL's own computation on the same replies.

TRL's function is called itself, so a version that changes its meaning fails here.
"""

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from trl import GRPOConfig

from models.layout import layout_of
from models.loading import attentions_of, load_model, load_processor
from train.freezing.backward import stop_backward_early
from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze
from train.running.trainers import WatchedGRPOTrainer
from train.sharing.models import backbone_of
from train.sharing.trainer import PICTURE_FIELDS

NUM_GENERATIONS = 4
TOLERANCE = 1e-5
FAMILIES = ("pocket", "qwen2_vl", "qwen3_vl", "qwen2", "internvl")
PLAIN = "plain, for comparison"


def picture(seed: int, width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


SEEN = [picture(seed, *size) for seed, size in enumerate([(56, 56), (84, 56), (112, 112)])]
NUM_TILES = 5 + 5 + 5
"""Tiles of these three pictures for the small InternVL: 2 x 2 of 28 pixels, and a thumbnail."""
PROMPTS: list[dict[str, Any]] = [
    {"text": "How many objects are there ?", "images": [SEEN[0]]},
    {"text": "What is it", "images": []},
    {"text": "Describe the colours shapes .", "images": [SEEN[1], SEEN[2]]},
    {"text": "What colour is the object in the centre ?", "images": [SEEN[0]]},
]
"""With one picture, none, two, and the first one's picture again."""


def uneven(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between replies."""
    return [len(set(reply[0]["content"])) / 10 for reply in completions]


def rows(prompts: list[dict[str, Any]], *, seeing: bool) -> list[dict[str, Any]]:
    """The rows of a batch: each prompt `NUM_GENERATIONS` times."""
    return [
        {"prompt": [{"role": "user", "content": prompt["text"]}], **({"images": prompt["images"]} if seeing else {})}
        for prompt in prompts
        for _ in range(NUM_GENERATIONS)
    ]


def make_trainer(
    checkpoint: Path, directory: Path, *, freeze: FreezeArguments | None = None, peft: Any = None, **changes: Any
) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(directory), "per_device_train_batch_size": 16, "num_generations": NUM_GENERATIONS,
        "max_completion_length": 12, "report_to": "none", "use_cpu": True, "bf16": False, "seed": 5,
        "gradient_checkpointing": False, "loss_type": "dapo", "beta": 0.0, "shuffle_dataset": False,
    }  # fmt: skip
    attention, share = changes.pop("attn_implementation", None), changes.pop("share_prompts", True)
    model = load_model(checkpoint, dtype="float32", attn_implementation=attention)
    plan = plan_freeze(layout_of(checkpoint), freeze or FreezeArguments())
    stop_backward_early(model, plan)
    if peft is None:
        apply_freeze(model, plan)
    seeing = model.config.model_type != "qwen2"
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows(PROMPTS, seeing=seeing)])
    trainer = WatchedGRPOTrainer(
        model,
        reward_funcs=uneven,
        args=GRPOConfig(**(settings | changes)),
        train_dataset=data,
        processing_class=load_processor(checkpoint),
        peft_config=peft,
        share_prompts=share,
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def replies(trainer: Any, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """Real replies of the model; most are cut to different lengths, as by an end token."""
    torch.manual_seed(11)
    batch: dict[str, Any] = trainer._generate_and_score_completions(
        rows(prompts, seeing=trainer.model.config.model_type != "qwen2")
    )
    num_columns = batch["completion_ids"].shape[1]
    for row in range(len(batch["completion_ids"])):
        length = 1 + (5 * row) % num_columns
        batch["completion_mask"][row] = torch.arange(num_columns) < length
        batch["completion_ids"][row, length:] = trainer._tokenizer.pad_token_id
    if trainer.mask_truncated_completions:
        batch["completion_mask"][1] = 0  # an unfinished reply is masked as a whole
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    return batch


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    loss: float
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, list[float]]
    num_tokens: int
    """Tokens that the decoder read."""
    num_pictures: int
    """Pictures that the tower read."""


def run(trainer: Any, batch: dict[str, Any], *, shared: bool) -> Pass:
    trainer.not_shared = None if shared else PLAIN
    trainer._reader.forget()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    backbone = backbone_of(trainer.model)
    read, seen = [], []
    handles = [
        backbone.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    ]
    if hasattr(backbone, "visual"):
        look = backbone.visual.register_forward_pre_hook(
            lambda _, __, named: seen.append(len(named["grid_thw"])), with_kwargs=True
        )
        handles.append(look)
    if hasattr(backbone, "vision_tower"):  # of InternVL, which reads tiles
        look = backbone.vision_tower.register_forward_pre_hook(
            lambda _, __, named: seen.append(len(named["pixel_values"])), with_kwargs=True
        )
        handles.append(look)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    for handle in handles:
        handle.remove()
    loss.backward()
    named = trainer.model.named_parameters()
    gradients = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
    trainer.model.zero_grad()
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    return Pass(loss.item(), gradients, metrics, sum(read), sum(seen))


def assert_same(trainer: Any, batch: dict[str, Any]) -> None:
    assert trainer.not_shared is None
    plain, shared = run(trainer, batch, shared=False), run(trainer, batch, shared=True)
    assert shared.num_tokens < 0.75 * plain.num_tokens
    if plain.num_pictures:
        distinct = NUM_TILES if trainer.model.config.model_type == "internvl" else len(SEEN)
        assert shared.num_pictures == distinct < plain.num_pictures
    scale = torch.stack([gradient.norm() for gradient in plain.gradients.values()]).max()
    assert scale > 1e-3 and shared.gradients.keys() == plain.gradients.keys()
    assert shared.loss == pytest.approx(plain.loss, rel=TOLERANCE, abs=1e-8)
    for name, expected in plain.gradients.items():
        # A gradient that is itself a rounding error, such as that of a key's bias, is compared with the largest.
        distance, size = (shared.gradients[name] - expected).norm(), expected.norm()
        assert distance <= TOLERANCE * max(size, 1e-2 * scale), (name, distance / size, size / scale)
    assert shared.metrics.keys() == plain.metrics.keys()
    for name, values in shared.metrics.items():
        assert values == pytest.approx(plain.metrics[name], rel=TOLERANCE, abs=1e-7, nan_ok=True), name


@pytest.mark.cases_slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_unequal_lengths_and_several_pictures(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    trainer = make_trainer(request.getfixturevalue(f"{family}_checkpoint"), tmp_path)
    assert_same(trainer, replies(trainer, PROMPTS))
    assert_same(trainer, replies(trainer, [PROMPTS[1], PROMPTS[1]]))  # without any picture


LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
LOSSES: dict[str, dict[str, Any]] = {
    **{loss_type: {"loss_type": loss_type} for loss_type in LOSS_TYPES},
    "sequence-level": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "luspo, sequence-level": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "two-sided clipping": {"delta": 4.0},
    "high entropy only": {"top_entropy_quantile": 0.4},
    "entropy bonus": {"entropy_coef": 0.05},
    "truncated replies masked": {"mask_truncated_completions": True},
    "several iterations": {"num_iterations": 2},
    "reference": {"beta": 0.2},
    "reference, bias correction": {"beta": 0.2, "use_bias_correction_kl": True, "num_iterations": 2},
    "temperature": {"temperature": 0.7},
    "eager attention": {"attn_implementation": "eager"},
}  # fmt: skip


def test_every_loss_type_of_trl_is_compared() -> None:
    described = GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert set(re.findall(r"'(\w+)'", described.split("Supported values are")[1].split(".")[0])) == set(LOSS_TYPES)


@pytest.mark.cases_slow
@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss(name: str, shallow_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path, **LOSSES[name])
    batch = replies(trainer, PROMPTS)
    if "old_per_token_logps" in batch:  # replies of a policy that has moved since
        batch["old_per_token_logps"] += 0.3 * torch.randn_like(batch["old_per_token_logps"])
    assert_same(trainer, batch)


ARMS = {
    "freeze-early": FreezeArguments(freeze=["early"]),
    "freeze-mid": FreezeArguments(freeze=["mid"]),
    "freeze-late": FreezeArguments(freeze=["late"]),
    "train-only late.attn": FreezeArguments(train_only=["late.attn"]),
    "freeze vision+projector": FreezeArguments(freeze=["vision", "projector"]),
    "freeze vision": FreezeArguments(freeze=["vision"]),
}


@pytest.mark.cases_slow
@pytest.mark.parametrize("checkpointing", ["off", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_under_gradient_checkpointing_of_both_kinds(
    arm: str, checkpointing: str, shallow_checkpoint: Path, tmp_path: Path
) -> None:
    settings = {} if checkpointing == "off" else {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": checkpointing == "reentrant"},
    }  # fmt: skip
    trainer = make_trainer(shallow_checkpoint, tmp_path, freeze=ARMS[arm], **settings)
    assert_same(trainer, replies(trainer, PROMPTS))


@pytest.mark.cases_slow
@pytest.mark.parametrize("changes", [{}, {"beta": 0.2, "gradient_checkpointing": True}], ids=["alone", "reference"])
def test_adapters(changes: dict[str, Any], shallow_checkpoint: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    trainer = make_trainer(shallow_checkpoint, tmp_path, peft=lora, **changes)
    assert_same(trainer, replies(trainer, PROMPTS))


@pytest.mark.cases_slow
@pytest.mark.parametrize("rows_per_pass", [1, 3, 6, 16])
def test_passes_that_cut_groups(rows_per_pass: int, shallow_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path)
    # TRL 1.16 cannot score a pass without pictures in a batch that has some.
    batch = replies(trainer, PROMPTS if rows_per_pass > 4 else [PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[0]])
    num_columns = batch["completion_ids"].shape[1]
    found = []
    for trainer.not_shared in (PLAIN, None):
        with torch.no_grad():
            logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                num_columns,
                batch_size=rows_per_pass,
                compute_entropy=True,
                **{name: batch.get(name) for name in PICTURE_FIELDS},
            )
        found.append((logps, entropies))
    (plain, shared) = found
    assert plain[0].shape == (16, num_columns) and plain[0].min() < -1
    torch.testing.assert_close(shared, plain, rtol=TOLERANCE, atol=1e-5)
    assert torch.equal(shared[0] == 0, batch["completion_mask"] == 0)


def test_a_batch_without_any_reply_to_learn_from_gives_gradients_of_zero(
    shallow_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path)
    batch = replies(trainer, PROMPTS)
    batch["completion_mask"][:] = 0
    found = [run(trainer, batch, shared=shared) for shared in (False, True)]
    for outcome in found:
        assert outcome.loss == 0 and all((gradient == 0).all() for gradient in outcome.gradients.values())
    assert found[0].gradients.keys() == found[1].gradients.keys()


@pytest.mark.cases_slow
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "greedy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_are_the_same_and_read_each_prompt_once(
    family: str, sampled: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {} if sampled else {"generation_kwargs": {"do_sample": False}}
    trainer = make_trainer(request.getfixturevalue(f"{family}_checkpoint"), tmp_path, **settings)
    seeing = family != "qwen2"
    for prompts in (PROMPTS, [PROMPTS[1], PROMPTS[3] | {"images": []}], PROMPTS[:1]):
        found, read = [], []
        for trainer.not_shared in (PLAIN, None):
            torch.manual_seed(4)
            counted: list[int] = []
            embeddings = backbone_of(trainer.model).get_input_embeddings()
            handle = embeddings.register_forward_hook(partial(count_tokens, counted))
            batch = trainer._generate_and_score_completions(rows(prompts, seeing=seeing))
            handle.remove()
            found.append(batch["completion_ids"])
            read.append(sum(counted))
        plain, shared = found
        assert torch.equal(plain, shared)
        num_distinct = len({tuple(reply) for reply in plain.tolist()})
        assert num_distinct == len(plain) if sampled else num_distinct <= len(prompts)
        assert read[1] < 0.75 * read[0]


def count_tokens(counted: list[int], _: torch.nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
    counted.append(inputs[0].numel())


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.cases_slow
def test_replies_of_a_group_share_a_pass_and_a_step_has_the_same_gradient(
    num_iterations: int, shallow_checkpoint: Path, tmp_path: Path
) -> None:
    found: dict[bool, list[dict[str, torch.Tensor]]] = {}
    num_tokens: dict[bool, int] = {}
    for shared in (False, True):
        trainer = make_trainer(
            shallow_checkpoint, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            steps_per_generation=4, num_iterations=num_iterations,
        )  # fmt: skip
        trainer.not_shared = None if shared else PLAIN
        trainer.current_gradient_accumulation_steps = 2
        seen = [PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[0]]
        torch.manual_seed(6)
        found[shared] = []
        counted: list[int] = []
        backbone_of(trainer.model).get_input_embeddings().register_forward_hook(partial(count_tokens, counted))
        for trainer._step in range(4 * num_iterations):
            inputs = trainer._prepare_inputs(rows(seen, seeing=True))
            if trainer._step == 0:
                counted.clear()
            trainer.compute_loss(trainer.model, inputs).backward()
            if trainer._step % 2:
                found[shared].append({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
                trainer.model.zero_grad()
        num_tokens[shared] = sum(counted)
    assert num_tokens[True] < 0.75 * num_tokens[False]
    for plain, ours in zip(found[False], found[True], strict=True):
        scale = max(gradient.norm() for gradient in plain.values())
        for name, gradient in plain.items():
            assert (ours[name] - gradient).norm() <= TOLERANCE * max(gradient.norm(), 1e-2 * scale), name


def test_features_of_a_fixed_tower_serve_the_whole_batch_of_generations(
    shallow_checkpoint: Path, tmp_path: Path
) -> None:
    for frozen, expected in ((["vision", "projector"], 2), ([], 2 + 4)):
        trainer = make_trainer(
            shallow_checkpoint, tmp_path, freeze=FreezeArguments(freeze=frozen), per_device_train_batch_size=2,
            gradient_accumulation_steps=4, steps_per_generation=4,
        )  # fmt: skip
        # Two groups in four passes: with a trained tower, the rollout and each pass read their pictures.
        for trainer._step in range(4):
            inputs = trainer._prepare_inputs(rows([PROMPTS[0], PROMPTS[2] | {"images": SEEN[1:2]}], seeing=True))
            trainer.compute_loss(trainer.model, inputs)
        assert trainer._reader.num_read == expected


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.cases_slow
def test_a_step_without_any_difference_in_rewards_moves_nothing(
    scale_rewards: str, shallow_checkpoint: Path, tmp_path: Path
) -> None:
    def constant(prompts: list[Any], **_: Any) -> list[float]:
        return [(0.1, 0.7, 0.9)[len(str(prompt)) % 3] for prompt in prompts]

    trainer = make_trainer(shallow_checkpoint, tmp_path, scale_rewards=scale_rewards, weight_decay=0.0)
    trainer.reward_funcs = [constant]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2, weight_decay=0.0)
    batch = trainer._generate_and_score_completions(rows([PROMPTS[0], PROMPTS[1], PROMPTS[3]], seeing=True))
    assert len({constant([prompt])[0] for prompt in trainer._logs["prompt"]}) > 1
    assert (batch["advantages"] == 0).all() and set(trainer._logs["advantages"]) == {0.0}
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]
    trainer.compute_loss(trainer.model, batch).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_only_groups_with_equal_rewards_are_silenced(shallow_checkpoint: Path, tmp_path: Path) -> None:
    def partly(completions: list[Any], **_: Any) -> list[float]:
        return [0.9] * NUM_GENERATIONS + [0.9, 0.9, 0.1, 0.1] + [0.7] * (len(completions) - 2 * NUM_GENERATIONS)

    trainer = make_trainer(shallow_checkpoint, tmp_path)
    trainer.reward_funcs = [partly]
    batch = trainer._generate_and_score_completions(rows(PROMPTS[:3], seeing=True))
    silent = batch["advantages"] == 0
    assert silent.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert batch["advantages"][4:8].sign().tolist() == [1, 1, -1, -1]
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(2 / 3)]


SILENT: dict[str, tuple[list[int], int]] = {
    "some groups": ([0, 2], 2),
    "a single reply of a group": ([], 4),
    "all groups": ([0, 1, 2, 3], 4),
    "all groups with pictures": ([0, 2, 3], 4),
}
"""Groups without any advantage, and the number of groups that are read with a gradient."""


@pytest.mark.cases_slow
@pytest.mark.parametrize("name", list(SILENT))
@pytest.mark.parametrize("frozen", [[], ["vision", "projector"]], ids=["tower trains", "tower frozen"])
def test_groups_without_advantages_are_read_without_a_gradient_and_all_else_is_the_same(
    frozen: list[str], name: str, shallow_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path, freeze=FreezeArguments(freeze=frozen))
    batch = replies(trainer, PROMPTS)
    silent, num_loud = SILENT[name]
    if frozen and name == "all groups with pictures":
        num_loud = 1  # the tower gets no gradient in any case
    batch["advantages"] = torch.linspace(-1, 1, 16)
    batch["advantages"][4] = 0.0
    for group in silent:
        batch["advantages"][group * NUM_GENERATIONS : (group + 1) * NUM_GENERATIONS] = 0.0
    plain = run(trainer, batch, shared=False)
    watched: list[int] = []
    scored = batch["completion_mask"].sum(dim=1)
    trainer._pass = partial(count_scored, watched, trainer._pass)
    shared = run(trainer, batch, shared=True)
    loud = [row for row in range(16) if num_loud == 4 or row // NUM_GENERATIONS not in silent]
    assert sum(watched) == scored[loud].sum()
    assert shared.gradients.keys() == plain.gradients.keys()
    scale = max(gradient.norm() for gradient in plain.gradients.values())
    for parameter, expected in plain.gradients.items():
        distance = (shared.gradients[parameter] - expected).norm()
        assert distance <= TOLERANCE * max(expected.norm(), 1e-2 * scale), parameter
    assert shared.loss == pytest.approx(plain.loss, rel=TOLERANCE, abs=1e-7)
    for metric, values in shared.metrics.items():
        assert values == pytest.approx(plain.metrics[metric], rel=TOLERANCE, abs=1e-7, nan_ok=True), metric


def count_scored(counted: list[int], run_pass: Any, model: Any, backbone: Any, batch: Any, **options: Any) -> Any:
    """Counts the reply tokens of the passes with a gradient."""
    if torch.is_grad_enabled():
        counted.append(int(batch.mask[:, batch.num_prompt_columns :].sum()))
    return run_pass(model, backbone, batch, **options)


@pytest.mark.cases_slow
@pytest.mark.parametrize("changes", [{"beta": 0.2}, {"entropy_coef": 0.05}], ids=["reference", "entropy bonus"])
def test_a_loss_with_other_terms_gives_gradients_to_groups_without_advantages(
    changes: dict[str, Any], shallow_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path, **changes)
    batch = replies(trainer, PROMPTS)
    if "ref_per_token_logps" in batch:
        batch["ref_per_token_logps"] += 0.3 * torch.randn_like(batch["ref_per_token_logps"])
    batch["advantages"][NUM_GENERATIONS:] = 0.0
    assert_same(trainer, batch)


def test_the_run_says_whether_prompts_are_shared_and_computes_as_trl_does_otherwise(
    shallow_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(shallow_checkpoint, tmp_path, share_prompts=False)
    assert trainer.describe_sharing().startswith("no, share_prompts is false;")
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
    dropped = make_trainer(shallow_checkpoint, tmp_path, peft=lora, disable_dropout=False)
    assert dropped.describe_sharing().startswith("no, dropout differs between replies (")
    for one in (trainer, dropped):
        batch = replies(one, PROMPTS)
        _, seen = one.compute_loss(one.model, batch), one._reader.num_read
        assert seen == 0
    shared = make_trainer(shallow_checkpoint, tmp_path)
    assert shared.describe_sharing().startswith("yes, ")


def test_the_reference_model_has_the_policys_attention(shallow_checkpoint: Path, tmp_path: Path) -> None:
    """Not the one that `config.json` names, which TRL's own loading prefers to the one asked for."""
    directory = Path(shutil.copytree(shallow_checkpoint, tmp_path / "checkpoint"))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation": "flash_attention_2"}))
    trainer = make_trainer(directory, tmp_path / "run", beta=0.2, attn_implementation="eager")
    assert attentions_of(trainer.ref_model) == attentions_of(trainer.model) == {"eager"}
