"""Formats the plan's tables: trainable parameters, memory by phase, and all arms side by side."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from eval.statistics.components import ARMS, ASSUMED_SEED_SD, assumed_variation
from eval.statistics.design import Size, detectable_difference
from tracking.tables import format_columns
from train.freezing.freeze import count_blocks, format_freeze_table
from train.planning.forecast import GIB, MIB, Forecast, weight_width
from train.planning.memory import PHASES
from train.planning.speed import LEAST, MOST, UTILISATION
from train.rollouts.setup import known_pairs

if TYPE_CHECKING:
    from train.planning.plan import Plan

NUM_PROMPTS = (500, 1000)
"""Prompts of one ability for which the detectable difference is given; the plan does not read the prompt set."""


def format_plan(plan: "Plan") -> str:
    """Formats the plan for the terminal."""
    lines = _header(plan)
    for name, needs in plan.forecasts.items():
        lines += ["", f"{name}:", format_freeze_table(needs.plan)]
        if needs.num_adapter_elements:
            lines.append(
                f"LoRA: {needs.num_adapter_elements:,} parameters train, in adapters on the weights that train"
            )
        lines += ["", *_memory_table(plan, needs)]
    lines += ["", *_summary_table(plan), *_totals(plan), *_detectable(plan)]
    return "\n".join(lines)


def _header(plan: "Plan") -> list[str]:
    recipe, lengths, layout = plan.recipe, plan.lengths, plan.model.layout
    engine = recipe.engine
    sharing = f"ZeRO-{engine.stage}" if engine.stage else "DDP" if engine.num_processes > 1 else "one process"
    if engine.offload_optimizer:
        sharing += ", optimizer state on the CPU"
    if recipe.engine_bf16:
        numbers = "bf16 weights, fp32 masters"
    else:
        numbers = f"{'fp32' if weight_width(plan.model, recipe) == 4 else 'bf16'} weights"
        numbers += ", bf16 arithmetic" if recipe.autocast else ""
    sampling = {None: "Transformers", "colocate": "vLLM on the same GPUs", "server": "a vLLM server"}[recipe.vllm_mode]
    partition = next(iter(plan.forecasts.values())).plan.partition
    versions = [f"versions: {known_pairs()}"] if recipe.vllm_mode else []
    supervised = f"not forecast, as train.sft trains them: {', '.join(plan.supervised)}"
    return [
        f"start: {plan.start}",
        f"model: {layout.family.model_type}, {layout.num_layers} decoder layers, {layout.num_elements:,} parameters, "
        f"embeddings {'tied to the head' if layout.tied else 'and head apart'}",
        f"partition: {partition}",
        f"GPUs: {recipe.num_gpus} x {plan.gpu_name} ({plan.gpu_bytes / GIB:.1f} GiB), {sharing}, {numbers}, "
        f"gradient checkpointing {'on' if recipe.checkpointing else 'off'}"
        + (f", LoRA rank {recipe.adapter_rank}" if recipe.adapter_rank else ""),
        f"on each GPU: {recipe.sequences_per_pass} sequences a pass, {recipe.passes_per_step} passes a step, "
        f"{recipe.sequences_per_generation} sequences a generation, by {sampling}",
        f"assumed: every prompt {lengths.prompt_tokens:,} tokens long, {lengths.image_tokens:,} of them image, "
        f"and every reply {recipe.completion_tokens:,}",
        *versions,
        *([supervised] if plan.supervised else []),
    ]


def _memory_table(plan: "Plan", needs: Forecast) -> list[str]:
    unit, size = _unit(plan)
    rows: list[tuple[str, ...]] = [(f"memory of a GPU, {unit}", *PHASES)]
    for item in needs.items:
        if not item.on_cpu and size(item.num_bytes) != size(0):
            cells = (size(item.num_bytes) if phase in item.phases else "" for phase in PHASES)
            rows.append((item.name, *cells))
    rows.append(("in all", *(size(needs.phase_bytes(phase)) for phase in PHASES)))
    lines = format_columns(rows, right=range(1, len(PHASES) + 1))
    if needs.cpu_bytes:
        parts = ", ".join(f"{item.name} {size(item.num_bytes)}" for item in needs.items if item.on_cpu)
        lines.append(f"main memory of a process: {size(needs.cpu_bytes)} {unit} ({parts})")
    left = plan.gpu_bytes - needs.peak_bytes
    verdict = f"fits, {size(left)} {unit} left" if left >= 0 else f"does not fit, {size(-left)} {unit} too much"
    lines.append(f"on {plan.gpu_name}: {verdict} (fullest in {needs.peak_phase})")
    return lines


def _summary_table(plan: "Plan") -> list[str]:
    unit, size = _unit(plan)
    disks = [needs.disk for needs in plan.forecasts.values()]
    steps = any(disk.num_kept_steps for disk in disks)
    head = ("arm", "trainable", "frozen", *PHASES, "fits", "checkpoint", *(["trajectory"] if steps else []), "kept")
    rows: list[tuple[str, ...]] = [(*head, "GPU-hours")]
    for name, needs in plan.forecasts.items():
        num_frozen = sum(count.num_elements - count.num_trainable_elements for count in count_blocks(needs.plan))
        num_trainable = plan.model.layout.num_elements - num_frozen
        if needs.num_adapter_elements:
            num_trainable, num_frozen = needs.num_adapter_elements, plan.model.layout.num_elements
        rows.append(
            (
                name,
                f"{num_trainable:,}",
                f"{num_frozen:,}",
                *(size(needs.phase_bytes(phase)) for phase in PHASES),
                "yes" if needs.peak_bytes <= plan.gpu_bytes else "NO",
                size(needs.disk.checkpoint_bytes) if needs.disk.num_checkpoints else "none",
                *([size(needs.disk.trajectory_bytes)] if steps else []),
                size(needs.disk.kept_bytes),
                _hours(plan, needs),
            )
        )
    parts = "one checkpoint, for its kept steps at most" if steps else "one checkpoint"
    caption = f"all arms; memory of a GPU, and disk for {parts} and for what a run keeps, in {unit}:"
    right = [column for column in range(1, len(rows[0])) if rows[0][column] != "fits"]
    return [caption, *format_columns(rows, right=right)]


def _totals(plan: "Plan") -> list[str]:
    unit, size = _unit(plan)
    needs = list(plan.forecasts.values())
    kept = plan.num_seeds * sum(each.disk.kept_bytes for each in needs)
    written = max(each.disk.passing_bytes for each in needs)
    num_runs = plan.num_seeds * len(needs)
    lines = [
        f"disk, arms x seeds = {len(needs)} x {plan.num_seeds}: {size(kept + written)} {unit}; checkpoints kept a run: "
        f"{needs[0].disk.num_checkpoints}, beside final/, and one more while it is written"
    ]
    disk = needs[0].disk
    if disk.num_kept_steps:
        lines.append(
            f"trajectory: {disk.num_kept_steps} kept steps a run, at most {size(disk.kept_step_bytes)} {unit} a step "
            f"in {next(iter(plan.forecasts))}, if every element that trains changes in every bit"
        )
    tokens, speed = needs[0].num_tokens, plan.speed
    if tokens is None:
        lines.append("GPU-hours: max_steps is not given, so the number of tokens is unknown")
    elif speed is None:
        lines.append(
            f"GPU-hours: {tokens:,} tokens a run at most; the peak of this GPU is not known: give --tokens_per_s, as "
            "measured on one GPU"
        )
    else:
        hours = num_runs * speed.hours(tokens)
        between = (
            f" ({hours * UTILISATION / MOST:,.0f} to {hours * UTILISATION / LEAST:,.0f})" if speed.is_assumed else ""
        )
        lines.append(
            f"GPU-hours, arms x seeds: {hours:,.0f}{between}; {tokens:,} tokens a run at most, "
            f"assuming {speed.tokens_per_s:,.6g} tokens/s a GPU in every arm"
        )
        if speed.is_assumed:
            lines.append(
                f"this speed is assumed, not measured: {speed.source}, the share may be {LEAST:.0%} to {MOST:.0%}; "
                "--tokens_per_s sets it"
            )
    return lines


def _detectable(plan: "Plan") -> list[str]:
    """Returns the line about what a study of so many seeds could find; none for a single run."""
    if plan.num_seeds == 1:
        several = len(plan.forecasts) > 1
        return ["detectable with 1 seed an arm: nothing about training, only about these runs"] if several else []
    components = assumed_variation(seed_sd=ASSUMED_SEED_SD, base_rate=0.5).kinds[ARMS]
    sizes = [
        Size(num_prompts=number, num_seeds=plan.num_seeds, num_seeds_against=plan.num_seeds) for number in NUM_PROMPTS
    ]
    found = ", ".join(
        f"{100 * detectable_difference(components, size):.1f} points on {size.num_prompts:,} prompts" for size in sizes
    )
    return [
        f"detectable between two arms with {plan.num_seeds} seeds each (power 80 %, level 5 % before correction): "
        f"{found}, assuming a standard deviation of {100 * ASSUMED_SEED_SD:g} points between training runs; "
        "python -m eval.power takes other assumptions"
    ]


def _hours(plan: "Plan", needs: Forecast) -> str:
    speed = plan.speed
    if needs.num_tokens is None or speed is None:
        return "?"
    return f"{'~' if speed.is_assumed else ''}{speed.hours(needs.num_tokens):,.0f}"


def _unit(plan: "Plan") -> tuple[str, Callable[[int], str]]:
    """Returns the unit for the model's sizes, and a function that formats bytes in it."""
    name, divisor = ("GiB", GIB) if plan.model.stored_bytes >= GIB else ("MiB", MIB)
    return name, lambda num_bytes: f"{num_bytes / divisor:,.2f}"
