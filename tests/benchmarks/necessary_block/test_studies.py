"""The shipped studies: they start where the starts are built, and train as the construction requires."""

from pathlib import Path

import pytest

from benchmarks.necessary_block.command import ControlArguments
from benchmarks.necessary_block.studies import PHASES, STAGES, Workplace, study_config
from models.blocks import BLOCKS
from models.layout import Layout, layout_of
from tracking.command import REPOSITORY_ROOT, read_yaml


@pytest.mark.parametrize("block", BLOCKS)
def test_a_study_starts_from_its_own_block_and_has_every_arm(block: str) -> None:
    work = Workplace(directory=Path(ControlArguments().output_dir))
    study = read_yaml(REPOSITORY_ROOT / study_config(block))
    assert [study["base_checkpoint"], study["sft_checkpoint"]] == [str(work.placed(block, phase)) for phase in PHASES]
    assert study["prompts"] == str(work.prompts) and study["output_dir"] == str(work.study(block))
    assert study["arms"] == ["full", *(f"freeze-{other}" for other in BLOCKS), f"only-{block}"]
    assert len(study["seeds"]) >= 4


@pytest.mark.parametrize("stage", ["base", "sft", "grpo"])
def test_weights_without_a_gradient_do_not_decay(stage: str) -> None:
    assert read_yaml(REPOSITORY_ROOT / STAGES / f"{stage}.yaml")["weight_decay"] == 0


def test_the_planned_layout_is_the_pocket_models(pocket_layout: Layout) -> None:
    assert layout_of(REPOSITORY_ROOT / STAGES / "config.json").parameters == pocket_layout.parameters
