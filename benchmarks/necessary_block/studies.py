"""What is run? The starts are trained and built, then one necessity study per block, all with the suite's commands.

    DIR/start/data, untrained, base, sft       prompts, untrained model, whole model, cold start without sight
    DIR/start/BLOCK/base, DIR/start/BLOCK/sft  the whole model and the start of all arms, with the block in its place
    DIR/BLOCK                                  the study: arms, evaluations, `comparison.csv`, `report.html`
    DIR/seeds                                  one arm with ten seeds, for A against A

What is finished is not done again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.necessary_block.pictures import build_prompts
from benchmarks.necessary_block.start import TRAINED_IN, close_others, cut_route, partition_of, place_layers
from models.blocks import BLOCKS
from models.checkpoint import open_checkpoint
from models.pocket import CHECKPOINT_DIR
from tracking.command import REPOSITORY_ROOT
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
from train import FINAL_DIR

CONFIGS = Path("configs") / "calibration"
STAGES = CONFIGS / "necessity"
EXPECTED_S = {"init": 10.0, "train": 25.0}
PHASES = ("base", "sft")
"""The whole model, and the start of all arms."""
SEEDS = "seeds"
"""The study of A against A."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The folder of the positive control."""

    directory: Path
    seed: int = 0

    @property
    def start(self) -> Path:
        return self.directory / "start"

    @property
    def prompts(self) -> Path:
        return self.start / "data"

    def placed(self, block: str, phase: str) -> Path:
        """Returns the checkpoint of a phase with the block in its place."""
        return self.start / block / phase

    def study(self, block: str) -> Path:
        """Returns the folder of a block's study, or of A against A."""
        return self.directory / block


def study_config(block: str) -> Path:
    """Returns the configuration of a block's study, or of A against A."""
    return CONFIGS / f"necessity_{block}.yaml"


def start_configs() -> list[Path]:
    """Returns the configurations that the starts depend on."""
    return [STAGES / f"{name}.yaml" for name in ("init", *PHASES)]


def study_configs(blocks: Sequence[str]) -> list[Path]:
    """Returns the configurations that the studies of these blocks and of A against A depend on."""
    return [*map(study_config, [*blocks, SEEDS]), *(STAGES / f"{name}.yaml" for name in ("grpo", "eval"))]


def build_untrained(work: Workplace) -> Path:
    """Writes the prompts and the untrained model, and returns its checkpoint."""
    if not work.prompts.exists():
        build_prompts(work.prompts, seed=work.seed)
    run_stage(work, "init", "untrained", "models.pocket")
    return work.start / "untrained" / CHECKPOINT_DIR


def build_starts(work: Workplace) -> None:
    """Trains the block and the cold start and writes both with the block early, mid and late."""
    untrained = build_untrained(work)
    partition = partition_of(open_checkpoint(untrained))
    build_placed(work, untrained, {block: partition.layers(block) for block in BLOCKS})


def build_placed(work: Workplace, untrained: Path, places: Mapping[str, Sequence[int]]) -> None:
    """Trains layers that alone can see, and the cold start, and writes both with the layers in each place.

    Args:
        untrained: weights of the layers that are closed.
        places: name -> where each of the trained layers stands; equally many for every name.
    """
    models = {name: work.start / name for name in ("closed", "cut")}
    (num_open,) = {len(layers) for layers in places.values()}
    if not models["closed"].exists():
        close_others(models["closed"], untrained, num_open=num_open)
    train_stage(work, "base", models["closed"])
    if not models["cut"].exists():
        cut_route(models["cut"], work.start / "base" / FINAL_DIR)
    train_stage(work, "sft", models["cut"])
    for name, layers in places.items():
        for phase in PHASES:
            if not work.placed(name, phase).exists():
                trained = work.start / phase / FINAL_DIR
                place_layers(work.placed(name, phase), layers, trained=trained, untrained=untrained)


def run_study(work: Workplace, block: str, *, overwrite: bool = False) -> None:
    """Runs the necessity study of one block, or of A against A: its arms, evaluations, comparison and page.

    Raises:
        RuntimeError: if a job fails, such as an arm in which a frozen tensor changed.
    """
    from train.necessity import main

    main([*study_words(work, block, root=REPOSITORY_ROOT), "--overwrite", str(overwrite)])


def study_words(work: Workplace, block: str, *, root: Path = Path()) -> list[str]:
    """Returns the arguments of train.necessity for the study of one block, or of A against A.

    Args:
        root: folder of the repository; by default the configuration is given from there.
    """
    start = TRAINED_IN if block == SEEDS else block
    return necessity_words(work, root / study_config(block), work.study(block), start)


def necessity_words(work: Workplace, config: Path, output_dir: Path, start: str) -> list[str]:
    """Returns the arguments of train.necessity for a study of the start of this name."""
    words = {
        "config": config,
        "output_dir": output_dir,
        "prompts": work.prompts,
        "base_checkpoint": work.placed(start, "base"),
        "sft_checkpoint": work.placed(start, "sft"),
    }
    return [word for name, value in words.items() for word in (f"--{name}", str(value))]


def train_stage(work: Workplace, phase: str, start: Path) -> None:
    """Trains `base` or `sft` from a checkpoint, unless it is finished."""
    run_stage(work, "train", phase, "train.sft", "--model_name_or_path", str(start), "--prompts", str(work.prompts))


def run_stage(work: Workplace, kind: str, name: str, *command: str) -> None:
    """Runs one command of the suite with its output in DIR/start/NAME, unless it is finished."""
    config = STAGES / ("init.yaml" if kind == "init" else f"{name}.yaml")
    output_dir = work.start / name
    words = (sys.executable, "-m", *command, "--config", str(config), "--output_dir", str(output_dir))
    job = Job(name=name, kind=kind, command=words, output_dir=output_dir)
    Schedule([job], num_parallel=1, log_dir=work.start / "logs", expected_s=EXPECTED_S).run()
