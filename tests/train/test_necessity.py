"""The plan of a study, and the mistakes it refuses before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.layout import Layout
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.necessity import NecessityArguments, check_inputs, main, plan_study, study_settings

ARMS = ("full", "freeze-early", "freeze-mid", "only-late", "freeze-random-1", "no-attn=mid.attn")


@pytest.fixture
def study(tmp_path: Path, pocket_checkpoint: Path, tiny_prompts: Path) -> dict[str, Any]:
    """A study of a checkpoint and prompts that are at hand, as its YAML holds it."""
    (tmp_path / "grpo.yaml").write_text("split: rl\n")
    (tmp_path / "eval.yaml").write_text("batch_size: 4\n")
    return {
        "output_dir": str(tmp_path / "study"),
        "grpo_config": str(tmp_path / "grpo.yaml"),
        "eval_config": str(tmp_path / "eval.yaml"),
        "sft_checkpoint": str(pocket_checkpoint),
        "prompts": str(tiny_prompts),
        "arms": list(ARMS),
        "seeds": [0, 3],
        "always_freeze": ["vision"],
    }


def run(study: dict[str, Any], *flags: str) -> None:
    config = Path(study["output_dir"]).parent / "study.yaml"
    config.write_text(yaml.safe_dump(study))
    main(["--config", str(config), *flags])


def test_a_dry_run_shows_the_whole_plan_and_writes_nothing(
    study: dict[str, Any], pocket_layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    run(study, "--dry_run")
    plan = capsys.readouterr().out
    assert not Path(study["output_dir"]).exists()
    partition = plan_freeze(pocket_layout, FreezeArguments()).partition
    assert f"partition: {partition}" in plan
    assert f"{pocket_layout.num_layers} decoder layers" in plan and "embeddings tied to the head" in plan
    frozen: dict[str, list[str]] = {"full": [], "freeze-early": ["early"], "freeze-mid": ["mid"]}
    frozen |= {"only-late": ["early", "mid"], "no-attn": ["mid.attn"]}
    for arm, expressions in frozen.items():
        resolved = plan_freeze(pocket_layout, FreezeArguments(freeze=expressions, always_freeze=["vision"]))
        trainable = sum(pocket_layout.parameters[name].num_elements for name in resolved.trainable)
        (line,) = [line for line in plan.splitlines() if line.startswith(f"{arm} ")]
        assert f"{trainable:,}" in line and f"{pocket_layout.num_elements - trainable:,}" in line
    commands = plan.partition("commands:\n")[2].splitlines()
    assert len(commands) == 6 * 2 + 6 * 2 + 1 + 2
    assert sum("train.grpo" in command for command in commands) == 12


@pytest.fixture
def by_data(study: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A study of arms by data, on prompts of two modalities."""
    prompts = tmp_path / "prompts"
    shutil.copytree(study["prompts"], prompts)
    for split in ("sft", "rl", "test"):
        path = prompts / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["meta"] = {"modality": ("negative", "Chest X-Ray")[number % 2]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.yaml").write_text("split: sft\n")
    (tmp_path / "boundary.yaml").write_text("num_samples: 2\n")
    return {
        **study,
        "prompts": str(prompts),
        "arms": ["data-all", "each-data", "data-boundary", "sft-chest-x-ray:freeze-mid"],
        "modalities": ["negative", "Chest X-Ray"],
        "sft_arm_config": str(tmp_path / "sft.yaml"),
        "boundary_config": str(tmp_path / "boundary.yaml"),
    }


def test_arms_by_data_start_from_sft_with_their_part_of_the_prompts(
    by_data: dict[str, Any], study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan_study(NecessityArguments(**by_data))
    check_inputs(planned)
    jobs = {job.name: job for job in planned.jobs}

    def after(name: str, flag: str) -> str | None:
        command = jobs[name].command
        return command[command.index(flag) + 1] if flag in command else None

    assert after("data-chest-x-ray-seed3", "--select") == "modality=Chest X-Ray"
    assert after("data-all-seed0", "--select") is None and after("data-boundary-seed0", "--select") is None
    chosen = Path(by_data["output_dir"]) / "boundary" / "data"
    assert after("data-boundary-seed0", "--prompts") == str(chosen)
    assert jobs["data-boundary-seed0"].needs == ("boundary",) and jobs["boundary"].kind == "boundary"
    supervised = jobs["sft-chest-x-ray-freeze-mid-seed0"]
    assert {"train.sft", "modality=Chest X-Ray", "mid"} <= set(supervised.command) and supervised.kind == "arm"
    assert {after(name, "--model_name_or_path") for name, job in jobs.items() if job.kind == "arm"} == {
        by_data["sft_checkpoint"]
    }
    assert after("comparison", "--reference") == "data-all"
    run(by_data, "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("sft-chest-x-ray-freeze-mid ")]
    assert line.endswith("Chest X-Ray, supervised")
    run(by_data, "--plan_json")
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {"arm": "data-negative", "seed": 0, "label": "data-negative-seed0", "method": "rl",
            "trained_on": "negative"} in runs  # fmt: skip
    assert study_settings(planned)["arms"][1:3] == ["data-negative", "data-chest-x-ray"]
    assert not {"modalities", "boundary_config"} & set(study_settings(plan_study(NecessityArguments(**study))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary_config": None}, "arm 'data-boundary' needs boundary_config"),
        ({"sft_arm_config": None}, "arm 'sft-chest-x-ray:freeze-mid' needs sft_arm_config"),
        ({"modalities": ["negative", "stained"], "arms": ["data-stained"]}, "no prompt with modality 'stained'"),
        ({"boundary_config": "other"}, "selects from the split sft, .* trains on rl"),
    ],
)
def test_arms_by_data_that_could_not_train_are_refused(
    by_data: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if changes.get("boundary_config"):
        changes = {"boundary_config": str(tmp_path / "other.yaml")}
        (tmp_path / "other.yaml").write_text("split: sft\n")
    with pytest.raises(ValueError, match=message):
        check_inputs(plan_study(NecessityArguments(**{**by_data, **changes})))


def test_every_arm_of_a_seed_differs_only_in_what_it_freezes(study: dict[str, Any]) -> None:
    jobs = [job for job in plan_study(NecessityArguments(**study)).jobs if job.kind == "arm"]
    assert [job.name for job in jobs] == [f"{arm.partition('=')[0]}-seed{seed}" for arm in ARMS for seed in (0, 3)]

    def without_freezing(command: tuple[str, ...]) -> tuple[str, ...]:
        words = [word for word, before in zip(command, ("", *command), strict=False) if "--output" not in word + before]
        begin = words.index("--freeze") if "--freeze" in words else words.index("--always_freeze")
        return (*words[:begin], *words[words.index("--always_freeze") :])

    for seed in (0, 3):
        assert len({without_freezing(job.command) for job in jobs if job.name.endswith(f"-seed{seed}")}) == 1
    assert len({job.output_dir for job in jobs}) == len(jobs)


def test_arms_of_every_layer_and_of_a_region_are_planned_and_recorded_by_name(
    study: dict[str, Any], pocket_layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    study["arms"] = ["full", "only-projector", "each-only.attn", "each-freeze:4"]
    planned = plan_study(NecessityArguments(**study))
    own = [f"only-llm:{layer}.attn" for layer in range(pocket_layout.num_layers)]
    assert study_settings(planned)["arms"] == ["full", "only-projector", *own, "freeze-llm:0-3", "freeze-llm:4-5"]
    commands = {job.name: list(job.command) for job in planned.jobs if job.kind == "arm"}
    assert len(commands) == 2 * (2 + len(own) + 2)
    command = commands["only-projector-seed0"]
    assert command[command.index("--train_only") + 1] == "projector" and "--freeze" not in command
    command = commands["only-llm1.attn-seed3"]
    begin = command.index("--freeze")
    assert command[begin + 1 : begin + 4] == ["llm:0", "llm:2-5", "llm:1.mlp"]
    run(study, "--dry_run")
    assert "all but projector" in capsys.readouterr().out


def test_stages_need_what_they_read(study: dict[str, Any]) -> None:
    jobs = {job.name: job for job in plan_study(NecessityArguments(**study)).jobs}
    done: set[str] = set()
    for job in jobs.values():
        assert set(job.needs) <= done, "jobs stand in an order in which they can run"
        done.add(job.name)
    assert jobs["eval-full-seed0"].needs == ("full-seed0",)
    assert set(jobs["comparison"].needs) == {name for name, job in jobs.items() if job.kind == "eval"}
    assert set(jobs["deltas"].needs) == {name for name, job in jobs.items() if job.kind == "arm"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["full", "freeze-mid", "full"]}, "arm 'full' is named twice"),
        ({"arms": ["full", "freeze-middle"]}, "'freeze-middle' is unknown; did you mean 'freeze-mid'"),
        ({"arms": ["x=midd"]}, "'midd' is unknown; did you mean 'mid'"),
        ({"arms": ["freeze-early", "all=llm+projector+embed+norm"]}, "leave nothing to train"),
        ({"seeds": [0, 1, 0]}, "seed 0 is named twice"),
        ({"always_freeze": ["visoin"]}, "'visoin' is unknown; did you mean 'vision'"),
        ({"grpo_config": "nowhere/grpo.yaml"}, "nowhere/grpo.yaml does not exist"),
        ({"sft_config": "sft.yaml"}, "expected either sft_checkpoint or sft_config"),
        ({"sft_checkpoint": None}, "expected either sft_checkpoint or sft_config"),
        ({"sft_checkpoint": "outputs/no/such/checkpoint"}, "checkpoint outputs/no/such/checkpoint does not exist"),
        ({"data_task": "pocket"}, "expected either prompts, a folder, or data_task"),
        ({"partition": "halves"}, "partition: 'halves' is unknown; expected one of thirds, paper"),
        ({"cuts": [3, 99]}, r"cuts \[3, 99\] do not divide"),
        ({"expected_s": ["arm=soon"]}, "expected_s 'arm=soon' is no KIND=SECONDS"),
        ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'"),
    ],
)
def test_a_mistake_in_the_study_is_one_line_each_and_nothing_is_written(
    study: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    wrong = {key: value for key, value in {**study, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        run(wrong)
    first, *rest = str(error.value).splitlines()
    assert not rest or first == f"{len(rest)} mistakes in the arguments:"
    assert not Path(study["output_dir"]).exists()


def test_a_study_with_vllm_where_there_is_none_is_refused_before_anything_is_written(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.rollouts.setup.installed_vllm", lambda: None)
    with pytest.raises(ValueError, match="vLLM is not installed here; make setup-vllm"):
        run({**study, "grpo_config": str(REPOSITORY_ROOT / "configs" / "pocket" / "grpo_vllm.yaml")})
    assert not Path(study["output_dir"]).exists()


def test_a_missing_or_unreadable_study_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        main(["--config", str(tmp_path / "nowhere.yaml")])
    (tmp_path / "bad.yaml").write_text("arms: [full\nseeds: 3: 4")
    with pytest.raises(ValueError, match="not readable as YAML") as error:
        main(["--config", str(tmp_path / "bad.yaml")])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--config needs a file"):
        main(["--config"])
    with pytest.raises(ValueError, match="required"):
        main(["--output_dir", str(tmp_path / "study")])


@pytest.mark.parametrize("name", ["grpo", "eval"])
def test_a_typo_in_a_stages_file_is_found_before_the_study_begins(study: dict[str, Any], name: str) -> None:
    Path(study[f"{name}_config"]).write_text("lerning_rate: 1.0e-4\n" if name == "grpo" else "bacth_size: 3\n")
    with pytest.raises(ValueError, match=r"unknown key '(lerning_rate|bacth_size)'; did you mean"):
        run(study)
    assert not Path(study["output_dir"]).exists()


def test_a_plan_made_for_another_model_is_refused(study: dict[str, Any], pocket_checkpoint: Path) -> None:
    config = json.loads((pocket_checkpoint / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    other = Path(study["output_dir"]).parent / "config.json"
    other.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not shaped like the model of the plan"):
        run({**study, "layout_config": str(other)})
    assert not Path(study["output_dir"]).exists()


def test_what_other_jobs_left_is_taken_together_and_nothing_else(study: dict[str, Any]) -> None:
    directory = Path(study["output_dir"])
    (directory / "arms" / "full-seed0").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="jobs are not finished: full-seed0, "):
        run(study, "--collect", "true")
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"
    with pytest.raises(ValueError, match="overwrite would remove what collect takes together"):
        run(study, "--collect", "true", "--overwrite", "true")
    (directory / "arms" / "full-seed0" / "kept").touch()
    with pytest.raises(RuntimeError, match="jobs are not finished: full-seed5, "):
        run({**study, "seeds": [5]}, "--collect", "true")  # another seed has come: what was there stays
    assert (directory / "arms" / "full-seed0" / "kept").exists()
    (directory / "run.json").unlink()
    (directory / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'notes.txt' but no run.json"):
        run(study, "--collect", "true")
