"""Was the change necessary? The whole experiment: from one SFT checkpoint, GRPO with each block frozen in turn.

    python -m train.necessity --config configs/pocket/necessity.yaml [--dry-run]

Every arm starts from the same SFT checkpoint and gets the same prompts in the same order per seed; only the frozen
blocks differ. Then all models answer the same held-out prompts, and the arms are compared with SFT and with `full`.
A finished stage is not run again, so a killed study continues with the same command.

    OUTPUT/data, init, base, sft        built here, if configured
    OUTPUT/boundary                     prompts of the arm data-boundary, with boundary_config
    OUTPUT/arms/ARM-seedK, eval/…       one folder per run
    OUTPUT/scores.csv, comparison.csv   the tables
    OUTPUT/report.html                  the page to read
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_builders.build import DATA_DIR
from data_builders.prompt_sets.fields import select_prompts
from data_builders.prompt_sets.prompts import read_prompts
from models.blocks import make_partition
from models.layout import Layout, layout_from_config, layout_of
from models.loading import local_checkpoint
from models.pocket import PocketShape, build_config, build_tokenizer
from tracking.command import check_all, is_main_process, parse_arguments, read_config, run_command
from tracking.fields import LibraryClass, argument_names
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
from tracking.progress import format_duration
from tracking.run import is_finished, open_run
from tracking.tables import format_columns
from train import FINAL_DIR
from train.freezing.arms import Arm, expand_word, parse_arms
from train.freezing.data_arms import SFT, ArmData
from train.freezing.freeze import FreezeArguments, FreezePlan, count_blocks, format_freeze_table, plan_freeze
from train.planning.study import NecessityArguments, arm_label, freeze_arguments, plan_jobs, study_files
from train.rollouts.setup import check_versions
from train.running.arguments import GRPO_CONFIG, MODEL_CONFIG, SFT_CONFIG

LOG_DIR = "logs"


@dataclass(frozen=True)
class Study:
    """The resolved study: the model's layout, the arms, and every command in order."""

    arguments: NecessityArguments
    layout: Layout
    plans: dict[str, FreezePlan]
    arms: list[Arm]
    jobs: list[Job]

    @property
    def directory(self) -> Path:
        return Path(self.arguments.output_dir)


def plan_study(arguments: NecessityArguments) -> Study:
    """Resolves arms and commands; reads configurations but no weights."""
    layout = study_layout(arguments)
    whole = plan_freeze(layout, FreezeArguments(partition=arguments.partition, cuts=arguments.cuts))
    arms = parse_arms(arguments.arms, whole.partition, arguments.modalities)
    plans = {arm.name: plan_freeze(layout, freeze_arguments(arguments, arm)) for arm in arms}
    return Study(arguments, layout, plans, arms, plan_jobs(arguments, arms))


def study_layout(arguments: NecessityArguments) -> Layout:
    """Returns the layout of the SFT checkpoint: from its own configuration, a stand-in, or the pocket shape."""
    if arguments.layout_config:
        return layout_of(Path(arguments.layout_config))
    for checkpoint in (arguments.sft_checkpoint, arguments.base_checkpoint):
        if checkpoint:
            return layout_of(local_checkpoint(checkpoint, config_only=True))
    assert arguments.init_config is not None
    values = study_files(arguments)[arguments.init_config]
    shape = PocketShape(**{key: value for key, value in values.items() if key in PocketShape.__dataclass_fields__})
    return layout_from_config(build_config(shape, build_tokenizer()).to_dict())


def format_plan(study: Study) -> str:
    """Formats the plan: checkpoints, blocks, counts per arm, commands."""
    arguments = study.arguments
    partition = next(iter(study.plans.values())).partition
    lines = [
        f"study: {study.directory}",
        f"base: {arguments.base_checkpoint or arguments.base_config or '(none)'}",
        f"sft, the start of every arm: {arguments.sft_checkpoint or arguments.sft_config}",
        f"model: {study.layout.family.model_type}, {study.layout.num_layers} decoder layers, "
        f"{study.layout.num_vision_blocks} vision blocks, {study.layout.num_elements:,} parameters, "
        f"embeddings {'tied to the head' if study.layout.tied else 'and head apart'}",
        f"partition: {partition}",
        f"always frozen: {', '.join(arguments.always_freeze) or '(nothing)'}",
        f"arms: {len(study.arms)}, seeds: {', '.join(map(str, arguments.seeds))}",
        "",
    ]
    by_data = any(arm.data != ArmData() for arm in study.arms) or bool(arguments.modalities)
    rows = [("arm", "freezes", "trainable", "frozen", "trains in", *(("trains on",) if by_data else ()))]
    for arm in study.arms:
        counts = count_blocks(study.plans[arm.name])
        trainable = sum(count.num_trainable_elements for count in counts)
        frozen = sum(count.num_elements for count in counts) - trainable
        training = [
            count.block + ("" if count.state == "trains" else " (part)") for count in counts if count.state != "frozen"
        ]
        rows.append(
            (
                arm.name,
                arm.frozen,
                f"{trainable:,}",
                f"{frozen:,}",
                " ".join(training),
                *((arm.data.text,) if by_data else ()),
            )
        )
    lines += format_columns(rows, right=(2, 3))
    for arm in study.arms:
        lines += ["", f"{arm.name}:", format_freeze_table(study.plans[arm.name])]
    lines += ["", "commands:", *(f"  {job.shell}" for job in study.jobs)]
    return "\n".join(lines)


def study_settings(study: Study) -> dict[str, Any]:
    """Returns what determines the study's result: every arm by name, and the contents of the configuration files."""
    arguments = study.arguments
    skipped = (
        "output_dir", "dry_run", "plan_json", "collect", "overwrite", "num_parallel", "warm_start", "expected_s",
        "launcher",
    )  # fmt: skip
    added = ("modalities", "sft_arm_config", "boundary_config")  # studies without them have the settings of before
    values = {
        key: value for key, value in asdict(arguments).items() if key not in skipped and (value or key not in added)
    }
    partition = make_partition(study.layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    arms = [word for text in arguments.arms for word in expand_word(text, partition, arguments.modalities)]
    return {**values, "arms": arms, "files": study_files(arguments)}


def plan_as_json(study: Study) -> dict[str, Any]:
    """Returns the plan as JSON values: the models, the prompts, and the command line of every job."""
    arguments = study.arguments
    start, end = Path(arguments.output_dir) / "base" / FINAL_DIR, Path(arguments.output_dir) / "sft" / FINAL_DIR
    checkpoints = {
        "base": arguments.base_checkpoint or (str(start) if arguments.base_config else None),
        "sft": arguments.sft_checkpoint or str(end),
    }
    return {
        "output_dir": arguments.output_dir,
        "num_layers": study.layout.num_layers,
        "partition": arguments.partition,
        "cuts": arguments.cuts,
        "prompts": arguments.prompts or str(study.directory / "data" / DATA_DIR),
        "checkpoints": {name: checkpoint for name, checkpoint in checkpoints.items() if checkpoint},
        "runs": [
            {"arm": arm.name, "seed": seed, "label": arm_label(arm.name, seed), **_on_part(arm)}
            for arm in study.arms
            for seed in arguments.seeds
        ],
        "configs": arguments.config_files(),
        "expected_s": parse_expected(arguments.expected_s),
        "jobs": [
            {
                "name": job.name,
                "kind": job.kind,
                "argv": ["python" if word == sys.executable else word for word in job.command],
                "output_dir": str(job.output_dir),
                "needs": list(job.needs),
            }
            for job in study.jobs
        ],
    }


def _on_part(arm: Arm) -> dict[str, str]:
    """Returns what an arm by data trains on, for the plan."""
    return {} if arm.data == ArmData() else {"method": arm.data.method, "trained_on": arm.data.part}


def parse_expected(entries: list[str]) -> dict[str, float]:
    """Parses KIND=SECONDS entries."""
    expected = {}
    for entry in entries:
        kind, _, seconds = entry.partition("=")
        if not seconds.replace(".", "", 1).isdigit():
            raise ValueError(f"expected_s {entry!r} is no KIND=SECONDS, such as arm=80")
        expected[kind] = float(seconds)
    return expected


def check_stage_files(arguments: NecessityArguments) -> None:
    """Rejects misspelt keys in the stages' configurations, which would otherwise be found only when a stage starts."""
    from data_builders.build import TASKS, BuildArguments
    from eval.boundary import BoundaryArguments
    from eval.run import ARGUMENTS as EVALUATION_ARGUMENTS
    from models.pocket import PocketArguments
    from train import sft
    from train.running.arguments import OUR_ARGUMENTS

    task = TASKS[arguments.data_task].arguments if arguments.data_task in TASKS else ()
    supervised = (SFT_CONFIG, MODEL_CONFIG, *sft.OUR_ARGUMENTS)
    stages: list[tuple[str | None, tuple[type | LibraryClass, ...]]] = [
        (arguments.data_config, (BuildArguments, *task)),
        (arguments.init_config, (PocketArguments, PocketShape)),
        (arguments.base_config, supervised),
        (arguments.sft_config, supervised),
        (arguments.grpo_config, (GRPO_CONFIG, MODEL_CONFIG, *OUR_ARGUMENTS)),
        (arguments.eval_config, EVALUATION_ARGUMENTS),
        (arguments.sft_arm_config, supervised),
        (arguments.boundary_config, (BoundaryArguments,)),
    ]
    check_all(*(partial(_check_keys, Path(path), classes) for path, classes in stages if path is not None))


def _check_keys(path: Path, classes: Sequence[type | LibraryClass]) -> None:
    known = [name for kind in classes for name in argument_names(kind)]
    read_config(path, known)


def check_inputs(study: Study) -> None:
    """Checks that vLLM, checkpoints and prompts exist and match the plan."""
    arguments = study.arguments
    check_stage_files(arguments)
    _check_boundary_split(arguments)
    if study_files(arguments)[arguments.grpo_config].get("use_vllm"):
        check_versions()
    if arguments.prompts:
        configs = (arguments.sft_config, arguments.grpo_config, arguments.sft_arm_config)
        stages = [study_files(arguments)[path] for path in configs if path]
        for split in dict.fromkeys([*(stage.get("split", "") for stage in stages), arguments.eval_split]):
            read_prompts(Path(arguments.prompts), split)
        _check_parts(study)
    for checkpoint in filter(None, (arguments.base_checkpoint, arguments.sft_checkpoint)):
        layout = layout_of(local_checkpoint(checkpoint, config_only=True))
        if layout.parameters != study.layout.parameters:
            differing = sorted(name for name, _ in layout.parameters.items() ^ study.layout.parameters.items())
            raise ValueError(
                f"checkpoint {checkpoint} is not shaped like the model of the plan, the first difference is "
                f"{differing[0]!r}; correct or remove layout_config"
            )


def _check_boundary_split(arguments: NecessityArguments) -> None:
    """Refuses a selection from another split than the one that GRPO trains on."""
    if arguments.boundary_config is None:
        return
    files = study_files(arguments)
    chosen = files[arguments.boundary_config].get("split", "rl")
    trained = files[arguments.grpo_config].get("split")
    if chosen != trained:
        raise ValueError(
            f"{arguments.boundary_config} selects from the split {chosen}, and {arguments.grpo_config} trains on "
            f"{trained}; expected the same split"
        )


def _check_parts(study: Study) -> None:
    """Refuses arms by data that would find no prompts to train on."""
    arguments = study.arguments
    files = study_files(arguments)
    for arm in study.arms:
        config = arguments.sft_arm_config if arm.data.method == SFT else arguments.grpo_config
        split = str(files[str(config)].get("split", ""))
        if arm.data.select:
            where = f"arm {arm.name!r}: {arguments.prompts}: split {split}"
            select_prompts(read_prompts(Path(str(arguments.prompts)), split), arm.data.select, where=where)


def run_study(study: Study) -> Path:
    """Runs all unfinished stages and returns the report's path."""
    from analyze.report.command import write_report

    arguments, directory = study.arguments, study.directory
    check_inputs(study)
    expected = parse_expected(arguments.expected_s)
    report = directory / "report.html"
    settings = study_settings(study)
    # The summary is always recomputed: arms may have been added or trained again.
    parts = {LOG_DIR, *(job.output_dir.relative_to(directory).parts[0] for job in study.jobs)}
    with open_run(
        directory,
        command="train.necessity",
        settings=settings,
        overwrite=arguments.overwrite or arguments.collect,
        found=parts if arguments.collect else (),
    ) as run:
        if run.finished:
            return report
        num_parallel = arguments.num_parallel or len(os.sched_getaffinity(0))
        if arguments.collect:
            collect(study)
            return report
        schedule = Schedule(
            study.jobs,
            num_parallel=num_parallel,
            log_dir=directory / LOG_DIR,
            expected_s=expected,
            warm_start=arguments.warm_start,
        )
        run.note(seconds_per_job=schedule.run())
        copy_tables(directory)
        write_report([directory], report)
    return report


def copy_tables(directory: Path) -> None:
    """Copies the comparison's tables into the study's folder."""
    for table in ("scores.csv", "comparison.csv"):
        shutil.copyfile(directory / "comparison" / table, directory / table)


def collect(study: Study) -> None:
    """Collects the results of jobs that were run elsewhere.

    Raises:
        RuntimeError: if some results are missing; the existing ones are still collected.
    """
    from analyze.report.command import write_report

    directory = study.directory
    missing = [job.name for job in study.jobs if not is_finished(job.output_dir)]
    if is_finished(directory / "comparison"):
        copy_tables(directory)
    if missing:
        raise RuntimeError(f"{len(missing)} of {len(study.jobs)} jobs are not finished: {', '.join(missing)}")
    write_report([directory], directory / "report.html")


def main(argv: list[str] | None = None) -> None:
    import time

    begin = time.monotonic()
    (arguments,) = parse_arguments(argv, NecessityArguments, description=__doc__, check_inputs=True)
    study = plan_study(arguments)
    if arguments.plan_json:
        print(json.dumps(plan_as_json(study), indent=1))
        return
    if arguments.dry_run:
        print(format_plan(study))
        return
    report = run_study(study)
    if is_main_process():
        print(f"done in {format_duration(time.monotonic() - begin)}\nreport: {report}")


if __name__ == "__main__":
    run_command(main)
