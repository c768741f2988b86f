"""The plan of a study or a run: what it reads, what it says, and the mistakes it refuses."""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eval.statistics.components import ARMS as ARM_AGAINST_ARM
from eval.statistics.components import ASSUMED_SEED_SD, assumed_variation
from eval.statistics.design import Size, detectable_difference
from merge.trajectories.store import TRAJECTORY_DIR, TrajectoryWriter
from models.checkpoint import open_checkpoint
from models.layout import Layout, layout_of
from tracking.command import REPOSITORY_ROOT
from train.plan import main
from train.planning.memory import BACKWARD, ROLLOUT, STEP, Engine
from train.planning.plan import GPUS, Plan, make_plan, memory_of, plan_as_json
from train.planning.recipe import deepspeed_engine, read_launcher
from train.planning.tables import format_plan

ARMS = ["full", "freeze-early", "freeze-mid", "only-late"]
CONFIG_3B = str(REPOSITORY_ROOT / "configs/frankenstein_3b/config.json")
GRPO = {
    "split": "rl", "dtype": "float32", "bf16": True, "per_device_train_batch_size": 4, "num_generations": 4,
    "max_completion_length": 64, "max_steps": 100, "save_steps": 20, "save_total_limit": 2,
    "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    return write_yaml(tmp_path / "grpo.yaml", GRPO)


@pytest.fixture
def study(tmp_path: Path, grpo: Path, pocket_checkpoint: Path) -> Path:
    (tmp_path / "eval.yaml").write_text("batch_size: 4\n")
    values = {
        "output_dir": str(tmp_path / "study"), "grpo_config": str(grpo), "eval_config": str(tmp_path / "eval.yaml"),
        "sft_checkpoint": str(pocket_checkpoint), "prompts": "nowhere", "arms": ARMS, "seeds": [0, 1],
        "launcher": "accelerate launch --num_processes 2 -m",
    }  # fmt: skip
    return write_yaml(tmp_path / "study.yaml", values)


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def plan(*words: object) -> Plan:
    return make_plan([str(word) for word in words])


def sizes(of: Plan, arm: str | None = None) -> dict[str, int]:
    needs = of.forecasts[arm] if arm else next(iter(of.forecasts.values()))
    return {item.name: item.num_bytes for item in needs.items}


def test_every_arm_of_a_study_is_planned_from_headers_alone(
    study: Path, pocket_layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    output = study.parent / "plan.json"
    main(["--config", str(study), "--tokens_per_s", "500", "--json", str(output)])
    printed, written = capsys.readouterr().out, json.loads(output.read_text())
    assert list(written["arms"]) == ARMS and written["num_gpus"] == 2
    for arm, values in written["arms"].items():
        assert sum(block["num_elements"] for block in values["blocks"]) == pocket_layout.num_elements
        frozen = {block["block"] for block in values["blocks"] if not block["num_trainable_elements"]}
        expected = {"full": set(), "freeze-early": {"early"}, "freeze-mid": {"mid"}, "only-late": {"early", "mid"}}
        assert frozen == expected[arm] and f"\n{arm}:\n" in printed
        assert values["num_tokens"] == 100 * 4 * 2 * (1024 + 64)
        assert values["disk"]["num_checkpoints"] == 2
    assert "assumed: every prompt 1,024 tokens long" in printed and "assuming 500 tokens/s a GPU" in printed
    assert not (study.parent / "study").exists()


def test_no_weights_are_read(tmp_path: Path, grpo: Path) -> None:
    """A checkpoint of 3B whose file is a header and a hole: reading it would take longer than this test may."""
    layout = layout_of(Path(CONFIG_3B))
    header, offset = {}, 0
    for parameter in layout:
        end = offset + 2 * parameter.num_elements
        header[parameter.name] = {"dtype": "BF16", "shape": parameter.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + offset)
    (tmp_path / "config.json").write_text(Path(CONFIG_3B).read_text())
    of_run = plan("--config", grpo, "--model_name_or_path", tmp_path)
    assert of_run.model.stored_bytes == offset == next(iter(of_run.forecasts.values())).disk.final_bytes
    allocated = (tmp_path / "model.safetensors").stat().st_blocks * 512
    assert allocated < offset / 100, "the hole is still one"


def test_zero_2_in_bf16_needs_what_the_closed_form_says(tmp_path: Path, grpo: Path) -> None:
    """With P parameters on N GPUs: 2P weights, and (4P gradients + 12P masters and moments) / N."""
    deepspeed = REPOSITORY_ROOT / "configs/deepspeed/zero2.json"
    of_run = plan("--config", grpo, "--layout_config", CONFIG_3B, "--deepspeed", deepspeed, "--num_gpus", 8)
    held = sum(sizes(of_run)[name] for name in ("weights", "master weights", "optimizer state", "gradients"))
    assert held == pytest.approx(4 * of_run.model.layout.num_elements, rel=1e-6)


def test_what_is_frozen_below_costs_neither_state_nor_activations(study: Path) -> None:
    of_study = plan("--config", study, "--always_freeze", "vision", "projector", "embed")
    full, late = sizes(of_study, "full"), sizes(of_study, "only-late")
    blocks = {arm: needs.plan for arm, needs in of_study.forecasts.items()}
    share = {
        arm: sum(blocks[arm].layout.parameters[name].num_elements for name in blocks[arm].trainable) for arm in blocks
    }
    assert late["optimizer state"] == pytest.approx(
        full["optimizer state"] * share["only-late"] / share["full"], rel=0.01
    )
    assert late["activations, decoder"] < 0.4 * full["activations, decoder"]
    assert "activations, vision" not in full
    assert "activations, vision" in sizes(plan("--config", study), "full")


@pytest.mark.slow
def test_flags_of_a_run_apply(grpo: Path) -> None:
    base = ("--config", grpo, "--layout_config", CONFIG_3B)
    whole, checkpointed = sizes(plan(*base)), sizes(plan(*base, "--gradient_checkpointing", "true"))
    assert checkpointed["activations, decoder"] < whole["activations, decoder"] / 5
    assert list(plan(*base, "--freeze", "mid").forecasts) == ["freeze mid"]
    assert list(plan(*base, "--train_only", "late").forecasts) == ["train-only late"]
    lora = plan(*base, "--use_peft", "--lora_r", "8", "--train_only", "late")
    assert next(iter(lora.forecasts.values())).num_adapter_elements == 8 * sum(
        sum(lora.model.layout.parameters[name].shape) for name in next(iter(lora.forecasts.values())).plan.trainable
    )
    assert "reference model" not in sizes(plan(*base, "--use_peft", "--beta", "0.1"))


def test_a_reference_model_is_cut_only_under_zero_3(grpo: Path) -> None:
    base = ("--config", grpo, "--layout_config", CONFIG_3B, "--num_gpus", "4", "--beta", "0.04")
    num_elements = plan(*base).model.layout.num_elements
    expected = {"zero2.json": 2 * num_elements, "zero3.json": num_elements / 2}
    for name, num_bytes in expected.items():
        of_run = plan(*base, "--deepspeed", REPOSITORY_ROOT / "configs/deepspeed" / name)
        assert sizes(of_run)["reference model"] == pytest.approx(num_bytes, rel=0.01)
    assert sizes(plan(*base))["reference model"] == 4 * num_elements


@pytest.mark.slow
def test_vllm_takes_its_share_and_gives_it_back_asleep(grpo: Path) -> None:
    base = (
        "--config",
        grpo,
        "--layout_config",
        CONFIG_3B,
        "--use_vllm",
        "true",
        "--vllm_gpu_memory_utilization",
        "0.5",
    )

    def phases(*words: str) -> tuple[str, ...]:
        needs = next(iter(plan(*base, *words).forecasts.values()))
        assert "KV cache" not in {item.name for item in needs.items}
        return next((item.phases for item in needs.items if item.name == "vLLM's share"), ())

    assert phases() == (ROLLOUT, BACKWARD, STEP)
    assert phases("--vllm_enable_sleep_mode", "true") == (ROLLOUT,)
    assert phases("--vllm_mode", "server") == ()
    assert sizes(plan(*base))["vLLM's share"] == GPUS["h100-80gb"] * 2**20 // 2


def test_the_longest_prompt_is_what_the_filter_or_vllm_lets_through(grpo: Path) -> None:
    base = ("--config", grpo, "--layout_config", CONFIG_3B)
    assert plan(*base, "--max_prompt_tokens", "300").lengths.prompt_tokens == 300
    limited = plan(*base, "--use_vllm", "true", "--vllm_max_model_length", "564")
    assert (limited.lengths.prompt_tokens, limited.lengths.image_tokens) == (500, 500)
    assert plan(*base, "--prompt_tokens", "200", "--image_tokens", "50").lengths.image_tokens == 50


@pytest.mark.parametrize(
    "family",
    ["pocket_checkpoint", "qwen2_checkpoint", "qwen3_vl_checkpoint", "qwen3_5_checkpoint", "internvl_checkpoint"],
)
def test_every_family_can_be_planned(grpo: Path, family: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(family)
    items = sizes(plan("--config", grpo, "--model_name_or_path", checkpoint, "--freeze", "mid"))
    assert items["weights"] == 4 * layout_of(checkpoint).num_elements
    assert ("pictures of one generation" in items) == (family != "qwen2_checkpoint")


def test_a_gpu_too_small_is_said(study: Path) -> None:
    of_study = plan("--config", study, "--gpu", "1.001")
    assert not any(values["fits"] for values in plan_as_json(of_study)["arms"].values())
    assert "does not fit" in format_plan(of_study)
    assert memory_of("24") == 24 * 2**30 and memory_of("h100-80gb") == 81_559 * 2**20


def test_the_launcher_says_how_many_gpus_and_which_engine(tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "cluster.yaml", {"num_processes": 16, "deepspeed_config": {"zero_stage": 2}})
    launch = read_launcher(f"accelerate launch --config_file {file} --machine_rank 0 -m")
    assert launch.num_processes == 16 and isinstance(launch.deepspeed, dict)
    assert launch.deepspeed["zero_optimization"]["stage"] == 2
    assert read_launcher(f"accelerate launch --config_file={file} --num_processes 4 -m").num_processes == 4
    assert read_launcher("torchrun --nproc-per-node 8 --nnodes 2 -m").num_processes == 16
    assert read_launcher("accelerate launch --deepspeed_config_file z.json -m").deepspeed == "z.json"
    assert read_launcher(None).num_processes is None


def test_auto_is_filled_in_as_transformers_does() -> None:
    zero = {"stage": 3, "stage3_param_persistence_threshold": "auto", "reduce_bucket_size": "auto"}
    values = {"zero_optimization": zero, "optimizer": {"type": "AdamW"}}
    engine = deepspeed_engine(values, num_processes=2, bf16=True, hidden_size=64, accumulates=False)
    assert engine.persistence_threshold == 640 and engine.bucket_elements == 64 * 64 and engine.one_group
    plain = deepspeed_engine(
        {"zero_optimization": {"stage": 3}}, num_processes=2, bf16=True, hidden_size=64, accumulates=False
    )
    assert plain == Engine(num_processes=2, stage=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h100-80"], "gpu 'h100-80' is unknown; did you mean 'h100-80gb'"),
        (["--num_gpus", "0"], "num_gpus is 0; it must be positive"),
        (["--num_gpus", "3", "--num_generations", "8"], "12 sequences a generation"),
        (["--generation_batch_size", "6"], "generation_batch_size 6 is no multiple of the 4 sequences"),
        (["--image_tokens", "2000"], "prompts of 1024 tokens with 2000 image tokens"),
        (["--deepspeed", "nowhere.json"], "deepspeed nowhere.json: no such file"),
        (["--optim", "adafactor"], "optim 'adafactor' is not planned"),
        (["--save_strategy", "epoch"], "save_strategy 'epoch' is not planned"),
        (["--freeze", "midd"], "'midd' is unknown; did you mean 'mid'"),
        (["--lerning_rate", "1"], "unknown argument '--lerning_rate'; did you mean '--learning_rate'"),
    ],
)
def test_a_mistake_is_one_line(grpo: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan("--config", grpo, "--layout_config", CONFIG_3B, *words)
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, grpo: Path, study: Path) -> None:
    with pytest.raises(ValueError, match="model_name_or_path is missing"):
        plan("--config", grpo)
    write_yaml(grpo, {**GRPO, "lerning_rate": 1e-6})
    with pytest.raises(ValueError, match="unknown key 'lerning_rate'; did you mean 'learning_rate'"):
        plan("--config", study)
    zero = tmp_path / "zero.json"
    for values, message in (
        ({"zero_optimization": {"stage": 4}}, "stage is 4; expected 1, 2 or 3"),
        ({"bf16": {"enabled": True}}, "has no zero_optimization"),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}, "data_types": {"grad_accum_dtype": "fp32"}},
         "is another engine"),
    ):  # fmt: skip
        zero.write_text(json.dumps(values))
        write_yaml(grpo, {**GRPO, "deepspeed": str(zero)})
        with pytest.raises(ValueError, match=message):
            plan("--config", study)


@pytest.mark.slow
def test_all_arms_of_a_7b_recipe_are_planned_in_25_seconds_of_two_cores() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "train.plan", "--config", "configs/openmmreasoner_7b/necessity.yaml"]
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 25  # one busy core
    study = yaml.safe_load((REPOSITORY_ROOT / "configs/openmmreasoner_7b/necessity.yaml").read_text())
    assert all(f"\n{arm}:\n" in done.stdout for arm in study["arms"])


def test_gpu_hours_are_assumed_where_no_speed_is_given_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(REPOSITORY_ROOT / "configs/frankenstein_3b/necessity.yaml")]
    of_plan = plan(*argv, "--gpu", "h100-80gb")
    elements, tokens = of_plan.model.layout.num_elements, of_plan.forecasts["full"].num_tokens
    assert of_plan.speed is not None and of_plan.speed.is_assumed and of_plan.recipe.checkpointing
    assert of_plan.speed.tokens_per_s == pytest.approx(0.1 * 989e12 / (10 * elements))
    main([*argv, "--gpu", "h100-80gb"])
    printed = capsys.readouterr().out
    hours = len(of_plan.forecasts) * of_plan.num_seeds * of_plan.speed.hours(tokens or 0)
    assert f"GPU-hours, arms x seeds: {hours:,.0f} ({hours / 2:,.0f} to {hours * 2:,.0f})" in printed
    assert (
        "this speed is assumed, not measured: 10% of 989 bf16 TFLOPS" in printed and "--tokens_per_s sets it" in printed
    )
    main([*argv, "--gpu", "h100-80gb", "--tokens_per_s", "500"])
    assert "assumed, not measured" not in capsys.readouterr().out
    main([*argv, "--gpu", "48"])
    assert "the peak of this GPU is not known: give --tokens_per_s" in capsys.readouterr().out


def test_the_plan_of_a_study_says_which_difference_its_seeds_find(
    study: Path, grpo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    components = assumed_variation(seed_sd=ASSUMED_SEED_SD, base_rate=0.5).kinds[ARM_AGAINST_ARM]
    for num_seeds in (2, 5):
        main(["--config", str(study), "--seeds", *map(str, range(num_seeds))])
        printed = capsys.readouterr().out
        for num_prompts in (500, 1000):
            size = Size(num_prompts=num_prompts, num_seeds=num_seeds, num_seeds_against=num_seeds)
            assert f"{100 * detectable_difference(components, size):.1f} points on {num_prompts:,} prompts" in printed
        assert f"with {num_seeds} seeds each" in printed and "python -m eval.power" in printed
    main(["--config", str(study), "--seeds", "0"])
    assert "detectable with 1 seed an arm: nothing about training" in capsys.readouterr().out
    main(["--config", str(grpo), "--layout_config", CONFIG_3B])
    assert "detectable" not in capsys.readouterr().out


def test_kept_steps_are_counted_in_the_disk_space_and_never_take_more(
    tmp_path: Path, pocket_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps of 100 are kept; of each, random bits in every element that trains, which do not compress."""
    config = write_yaml(tmp_path / "grpo.yaml", {**GRPO, "keep_trajectory": 30})
    words = ["--config", str(config), "--model_name_or_path", str(pocket_checkpoint), "--freeze", "early", "mid"]
    (planned,) = plan(*words).forecasts.values()
    start, writer_dir = open_checkpoint(pocket_checkpoint), tmp_path / "run"
    writer = TrajectoryWriter(writer_dir, start, known={}, resume_step=0)
    rng = np.random.default_rng(0)
    for step in (30, 60, 90, 100):
        file = writer.open_step(step, planned.plan.trainable)
        for name in planned.plan.trainable:
            file.add(name, rng.bytes(start.tensors[name].num_bytes))
        writer.close_step(file)
    taken = sum(path.stat().st_size for path in (writer_dir / TRAJECTORY_DIR).iterdir())
    of_steps = planned.disk.trajectory_bytes
    assert planned.disk.num_kept_steps == 4 and 0.85 * of_steps < taken <= of_steps
    without = next(iter(plan(*words, "--keep_trajectory", 0).forecasts.values())).disk
    assert planned.disk.kept_bytes == without.kept_bytes + of_steps and without.num_kept_steps == 0
    main(words)
    printed = capsys.readouterr().out
    assert "4 kept steps a run, at most" in printed and f"{of_steps / 2**20:.2f}" in printed


def test_kept_steps_of_a_run_with_adapters_are_refused_as_in_training(grpo: Path, pocket_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="keep_trajectory is 5 and use_peft is on"):
        plan("--config", grpo, "--model_name_or_path", pocket_checkpoint, "--use_peft", "--keep_trajectory", 5)
