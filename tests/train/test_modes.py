"""Every training mode with every arm, for real: two processes for DDP and ZeRO. One launch serves many cases."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.freezing import ARMS, LAUNCHES, MODES, Case, all_cases, launch, prepare, read_case
from models.blocks import format_layers
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from tests.families_page import ENGINES, expect_engines
from train.freezing.backward import layers_with_graph
from train.freezing.freeze import FreezeArguments, plan_freeze

EXPRESSIONS = {
    "full": FreezeArguments(),
    "freeze-early": FreezeArguments(freeze=["early"]),
    "freeze-mid": FreezeArguments(freeze=["mid"]),
    "freeze-late": FreezeArguments(freeze=["late"]),
    "train-only late.attn": FreezeArguments(train_only=["late.attn"]),
    "freeze vision+projector": FreezeArguments(freeze=["vision", "projector"]),
}
NUM_LAYERS = 3
"""One a block."""
FIRST_LAYER = {"full": 0, "freeze-early": 1, "freeze-mid": 0, "freeze-late": 0, "train-only late.attn": 2,
               "freeze vision+projector": 0}  # fmt: skip
"""The lowest decoder layer with an adapter under LoRA."""


def test_every_pair_of_factors_occurs_and_each_value_with_every_mode_and_arm() -> None:
    cases = all_cases()
    assert len(cases) == len(MODES) * len(ARMS) == len({case.name for case in cases})
    factors = {"precision": {"fp32", "bf16"}, "checkpointing": {"off", "reentrant", "non-reentrant"},
               "run": {"one run", "resumed"}, "mode": set(MODES), "arm": set(ARMS)}  # fmt: skip
    for one, other in itertools.combinations(factors, 2):
        found = {(getattr(case, one), getattr(case, other)) for case in cases}
        assert found == set(itertools.product(factors[one], factors[other])), (one, other)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("modes")
    prepare(directory, num_layers=NUM_LAYERS)
    yield directory


def assert_holds(case: Case, work: Path) -> None:
    """Compares what a case left with the start checkpoint, file by file, and its report with the plan."""
    row = read_case(case, work)
    lora = case.mode == "LoRA"
    bf16_engine = case.mode.startswith("ZeRO") and case.precision == "bf16"
    start = open_checkpoint(work / ("start-bf16" if bf16_engine else "start"))
    layout = layout_of(start.directory)
    plan = plan_freeze(layout, EXPRESSIONS[case.arm])
    directory: Path = row["directory"]
    saved = [*sorted((directory / "checkpoints").glob("checkpoint-*")), directory / "final"]
    assert [path.name for path in saved] == ["checkpoint-1", "checkpoint-2", "final"] == row["checkpoints"], case
    for path in saved[-1:] if lora else saved:
        checkpoint = open_checkpoint(path)
        for name in plan.frozen:
            assert checkpoint.data(name) == start.data(name), f"{case}: {path.name} {name}"
    final = open_checkpoint(directory / "final")
    changed = {name for name in start.tensors if final.data(name) != start.data(name)}
    assert changed and changed <= set(plan.trainable), case
    in_decoder = {name for name in plan.trainable if layout.parameters[name].region == "llm"}
    decoder = {name for name in in_decoder if name.endswith("proj.weight")}
    assert decoder <= changed, f"{case}: {sorted(decoder - changed)[:3]} did not move"
    if lora:
        assert changed == decoder, case
    else:
        assert row["num_trainable_elements"] == sum(layout.parameters[name].num_elements for name in plan.trainable)
    assert 0 <= row["num_state_elements"] - row["num_trainable_elements"] <= 2 * len(plan.trainable), case
    reached = {("llm", i) for i in range(FIRST_LAYER[case.arm], NUM_LAYERS)} if lora else layers_with_graph(plan)
    assert row["decoder_layers"] == format_layers(i for region, i in reached if region == "llm"), case
    if row["vision_blocks"]:  # a first batch without an image leaves the tower out
        assert row["vision_blocks"] == format_layers(i for region, i in reached if region == "vision"), case
    assert row["num_attempts"] == (2 if case.run == "resumed" else 1), case


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_frozen_is_bit_identical_and_the_optimizer_holds_only_what_trains(name: str, work: Path) -> None:
    cases = [case for case in all_cases() if case.mode in LAUNCHES[name]]
    launch(cases, work, "cpu")
    for case in cases:
        assert_holds(case, work)
    expect_engines("qwen2_5_vl", *(engine for engine in ENGINES if engine in LAUNCHES[name]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_the_same_holds_on_a_gpu(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    directory = tmp_path_factory.mktemp("modes-gpu")
    prepare(directory, num_layers=NUM_LAYERS)
    cases = [case for case in all_cases() if case.mode in LAUNCHES[name]]
    launch(cases, directory, "cuda")
    for case in cases:
        assert_holds(case, directory)


@pytest.mark.slow
def test_an_adapter_loads_beside_its_merged_checkpoint_and_both_answer_alike(work: Path) -> None:
    from peft import PeftModel

    from models.loading import load_model

    case = next(case for case in all_cases() if case.mode == "LoRA" and case.precision == "fp32")
    if not (work / "runs" / case.name).exists():
        launch([case], work, "cpu")
    directory = work / "runs" / case.name
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        start = load_model(work / "start", dtype="float32").eval()
        before = start(input_ids=tokens).logits
        adapted: Any = PeftModel.from_pretrained(start, directory / "adapter").eval()
        unmerged = adapted(input_ids=tokens).logits
        merged = load_model(directory / "final", dtype="float32").eval()(input_ids=tokens).logits
    assert (unmerged - before).abs().max() > 1e-2
    torch.testing.assert_close(unmerged, merged, atol=2e-5, rtol=1e-5)
