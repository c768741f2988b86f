"""Telemetry: its numbers are those of an independent computation, and training goes on as without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from models.layout import Layout
from models.loading import load_model, load_processor
from train.freezing.freeze import FreezeArguments, FreezePlan, apply_freeze, plan_freeze
from train.running.data import DataArguments, build_dataset, load_prompts, training_order
from train.running.telemetry import Telemetry, block_of, is_measured
from train.running.telemetry_arguments import TelemetryArguments
from train.running.trainers import WatchedGRPOTrainer
from train.running.validation import validation_sets

NUM_STEPS = 4
Row = dict[str, Any]


class Watched(WatchedGRPOTrainer):
    """TRL's trainer with the seams of ours."""


def variety(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs among the replies of a model that has learned nothing."""
    return [float(len(set(reply[-1]["content"]))) for reply in completions]


class Compare(TrainerCallback):
    """Notes per block how far the weights moved in each step, from whole copies."""

    def __init__(self, plan: FreezePlan) -> None:
        self.plan = plan
        self.before: dict[str, torch.Tensor] = {}
        self.rows: list[Row] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sums: dict[str, list[float]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                delta = parameter.detach().double() - self.before[name].double()
                block = sums.setdefault(block_of(name, self.plan), [0.0, 0.0, 0.0])
                block[0] += float((delta**2).sum())
                block[1] += int((delta != 0).sum())
                block[2] += delta.numel()
        self.rows.append(
            {f"update_norm/{block}": squares**0.5 for block, (squares, _, _) in sums.items()}
            | {f"changed_frac/{block}": changed / total for block, (_, changed, total) in sums.items()}
        )


@pytest.fixture(scope="module")
def trained(
    pocket_checkpoint: Path, pocket_layout: Layout, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Watched, Compare]]:
    """Trains the pocket model for a few steps with `mid` frozen and returns the trainer and what it did to weights."""
    data = DataArguments(prompts=str(tiny_prompts), split="rl")
    prompts = load_prompts(data)

    def train(
        telemetry: TelemetryArguments | None,
        *,
        dtype: str = "float32",
        freeze: FreezeArguments | None = None,
        peft_config: Any = None,
        callbacks: tuple[TrainerCallback, ...] = (),
        eval_dataset: Any = None,
        **changes: Any,
    ) -> tuple[Watched, Compare]:
        from trl import GRPOConfig

        values: dict[str, Any] = {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8,
            "learning_rate": 1.0e-3, "beta": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3, "shuffle_dataset": False,
            "disable_tqdm": True, "output_dir": str(tmp_path_factory.mktemp("trainer")),
        }  # fmt: skip
        config = GRPOConfig(**(values | changes))
        plan = plan_freeze(pocket_layout, freeze or FreezeArguments(freeze=["mid"]))
        model = load_model(pocket_checkpoint, dtype=dtype)
        if peft_config is None:
            apply_freeze(model, plan)
        order = training_order(len(prompts), 32, seed=3)
        trainer = Watched(
            model,
            reward_funcs=[variety],
            args=config,
            train_dataset=build_dataset(prompts, order, data, with_response=False),
            eval_dataset=eval_dataset,
            processing_class=load_processor(pocket_checkpoint),
            peft_config=peft_config,
        )
        if telemetry is not None:
            trainer.watch(Telemetry(plan, telemetry))
        compare = Compare(plan)
        for callback in (compare, *callbacks):
            trainer.add_callback(callback)
        trainer.train()
        return trainer, compare

    return train


@pytest.fixture(scope="module")
def measured(trained: Callable[..., tuple[Watched, Compare]]) -> tuple[Watched, Compare]:
    """A run in which every step is measured, every tensor whole, and gradients are clipped."""
    return trained(TelemetryArguments(telemetry_steps=1, telemetry_elements=10**6))


def rows_of(trainer: Watched) -> list[Row]:
    return [row for row in trainer.state.log_history if "loss" in row]


def columns(row: Row, kind: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(f"{kind}/")}


def norm_over_blocks(row: Row) -> float:
    return float(sum(value**2 for value in columns(row, "grad_norm").values()) ** 0.5)


def weights(trainer: Watched) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("logging_steps", [1, 2, 4, 10, 20])
def test_each_multiple_is_measured_at_its_first_logged_step(every: int, logging_steps: int) -> None:
    found = [step for step in range(1, 121) if is_measured(step, every, logging_steps)]
    wanted = {-(-multiple // logging_steps) * logging_steps for multiple in range(every, 121, every)}
    assert found == sorted(step for step in wanted if step <= 120)


def test_every_parameter_and_its_adapter_belong_to_the_same_block(pocket_layout: Layout) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments())
    found = {name: block_of(name, plan) for name in pocket_layout.parameters}
    assert set(found.values()) == {"early", "mid", "late", "vision", "projector", "embed", "norm"}
    for name, block in found.items():
        module = name.rpartition(".")[0]
        assert block_of(f"base_model.model.{module}.lora_A.default.weight", plan) == block
    with pytest.raises(ValueError, match="fits no decoder layer and no region"):
        block_of("base_model.model.model.adapter.weight", plan)


def test_squares_over_blocks_add_up_to_the_trainers_gradient_norm_before_clipping(
    measured: tuple[Watched, Compare],
) -> None:
    rows = rows_of(measured[0])
    assert len(rows) == NUM_STEPS
    for row in rows:
        assert norm_over_blocks(row) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert any(row["grad_norm"] > measured[0].args.max_grad_norm for row in rows)


def test_updates_and_changed_shares_are_those_of_whole_copies(measured: tuple[Watched, Compare]) -> None:
    trainer, compare = measured
    for row, expected in zip(rows_of(trainer), compare.rows, strict=True):
        found = columns(row, "update_norm") | columns(row, "changed_frac")
        assert found == pytest.approx(expected, rel=1e-5)
        assert not any(name.endswith("/mid") for name in row)


@pytest.mark.slow
def test_training_goes_on_as_without_telemetry(
    trained: Callable[..., tuple[Watched, Compare]], measured: tuple[Watched, Compare]
) -> None:
    plain, _ = trained(None)
    state = torch.get_rng_state()
    sampled, _ = trained(TelemetryArguments(telemetry_steps=1, telemetry_elements=100))
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(plain) == weights(measured[0]) == weights(sampled)
    for row, other in zip(rows_of(plain), rows_of(measured[0]), strict=True):
        own = {name for kind in ("grad_norm", "update_norm", "changed_frac") for name in columns(other, kind)}
        assert len(own) == 18
        assert set(other) - set(row) == own
        assert all(other[name] == value for name, value in row.items() if name != "step_time")


def test_a_sample_of_elements_estimates_the_whole(trained: Callable[..., tuple[Watched, Compare]]) -> None:
    trainer, compare = trained(TelemetryArguments(telemetry_steps=2, telemetry_elements=8000), dtype="bfloat16")
    rows = rows_of(trainer)
    assert ["update_norm/late" in row for row in rows] == [False, True, False, True]
    for row, expected in list(zip(rows, compare.rows, strict=True))[1::2]:
        assert columns(row, "update_norm") == pytest.approx(
            {name: value for name, value in expected.items() if name.startswith("update")}, rel=0.05
        )
        assert columns(row, "changed_frac") == pytest.approx(
            {name: value for name, value in expected.items() if name.startswith("changed")}, abs=0.02
        )


@pytest.mark.slow
def test_what_bf16_weights_round_away_shows_in_the_changed_share(
    trained: Callable[..., tuple[Watched, Compare]],
) -> None:
    every = TelemetryArguments(telemetry_steps=1, telemetry_elements=10**6)
    trainer, compare = trained(every, dtype="bfloat16", learning_rate=2e-5, max_steps=2)
    for row, expected in zip(rows_of(trainer), compare.rows, strict=True):
        assert columns(row, "changed_frac") == pytest.approx(
            {name: value for name, value in expected.items() if name.startswith("changed")}
        )
        assert row["changed_frac/late"] < 0.5
        assert norm_over_blocks(row) == pytest.approx(row["grad_norm"], rel=0.01)  # Trainer's is rounded to bf16


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_step_where_it_has_several_backward_passes(
    trained: Callable[..., tuple[Watched, Compare]],
) -> None:
    trainer, _ = trained(
        TelemetryArguments(telemetry_steps=2), gradient_accumulation_steps=2, logging_steps=2, max_grad_norm=0.0
    )
    rows = rows_of(trainer)
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert norm_over_blocks(row) == pytest.approx(row["grad_norm"], rel=1e-5)


def test_adapters_are_measured_in_the_block_of_their_module(
    trained: Callable[..., tuple[Watched, Compare]], pocket_layout: Layout
) -> None:
    from peft import LoraConfig

    adapters = LoraConfig(r=4, target_modules=r".*language_model\.layers\.(0|5)\.self_attn\.(q|v)_proj")
    trainer, compare = trained(TelemetryArguments(telemetry_steps=1), peft_config=adapters, max_steps=2)
    for row, expected in zip(rows_of(trainer), compare.rows, strict=True):
        assert set(columns(row, "grad_norm")) == {"grad_norm/early", "grad_norm/late"}
        assert columns(row, "update_norm") | columns(row, "changed_frac") == pytest.approx(expected, rel=1e-5)
        assert norm_over_blocks(row) == pytest.approx(row["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_each_ability_is_evaluated_apart_and_alike_and_training_goes_on_as_without(
    trained: Callable[..., tuple[Watched, Compare]], measured: tuple[Watched, Compare], tiny_prompts: Path
) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="test")
    sets, notes = validation_sets(load_prompts(data), data, batch_size=2)
    assert {ability: len(rows) for ability, rows in sets.items()} == {"reasoning": 4, "vision": 6}
    assert notes[0] == "validation: reasoning, 4 of 5 prompts in batches of 2"
    trainer, _ = trained(
        TelemetryArguments(telemetry_steps=1), eval_dataset=sets, eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=4, num_generations_eval=2,
    )  # fmt: skip
    assert weights(trainer) == weights(measured[0])

    evaluations = [row for row in trainer.state.log_history if "loss" not in row and "train_runtime" not in row]
    assert [row["step"] for row in evaluations] == [2, 2, 4, 4]
    for row, ability in zip(evaluations, ["reasoning", "vision"] * 2, strict=True):
        assert row[f"eval_{ability}_num_prompts"] == len(sets[ability])
        assert f"eval_{ability}_rewards/variety/mean" in row
        assert all(name.startswith(f"eval_{ability}_") for name in row if name not in ("step", "epoch"))
    again = trainer.evaluate()
    for row in evaluations[2:]:
        for name, value in row.items():
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second")):
                assert again[name] == value, name


def test_the_mean_of_an_ability_is_that_of_its_replies(
    trained: Callable[..., tuple[Watched, Compare]], tiny_prompts: Path
) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="test")
    sets, _ = validation_sets(load_prompts(data), data, batch_size=2)
    trainer, _ = trained(None, eval_dataset=sets, max_steps=1, per_device_eval_batch_size=2, num_generations_eval=1)
    rewards: dict[str, list[float]] = {"number": [], "text": []}

    def noted(completions: list[Any], answer_kind: list[str], **_: Any) -> list[float]:
        values = variety(completions)
        for kind, value in zip(answer_kind, values, strict=True):
            rewards[kind].append(value)
        return values

    trainer.reward_funcs = [noted]
    metrics = trainer.evaluate()
    for ability, kind in (("reasoning", "number"), ("vision", "text")):
        assert len(rewards[kind]) == len(sets[ability])
        mean = sum(rewards[kind]) / len(rewards[kind])
        assert metrics[f"eval_{ability}_rewards/variety/mean"] == pytest.approx(mean)


def test_validation_sets_are_the_same_for_every_seed_and_fill_whole_batches(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="test")
    prompts = load_prompts(data)
    sets, _ = validation_sets(prompts, data, batch_size=2, max_prompts=3)
    again, _ = validation_sets(prompts, data, batch_size=2, max_prompts=3)
    assert {ability: rows["prompt"][:] for ability, rows in sets.items()} == {
        ability: rows["prompt"][:] for ability, rows in again.items()
    }
    assert {len(rows) for rows in sets.values()} == {2}
    with pytest.raises(ValueError, match=r"5 prompts of 'reasoning' .* do not fill one batch of 6"):
        validation_sets(prompts, data, batch_size=6)


@pytest.mark.parametrize(("name", "value"), [("telemetry_steps", -1), ("telemetry_elements", 0)])
def test_a_setting_out_of_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        TelemetryArguments(**{name: value})
