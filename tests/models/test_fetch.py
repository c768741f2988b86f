"""Everything a study needs, from a web server that answers as the hub does; killed, broken off and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from models.fetch import FetchArguments, find_repositories, main
from models.loading import local_checkpoint
from tracking.command import REPOSITORY_ROOT
from tracking.run import read_run

Hub = Any
"""tests/models/conftest.py"""
ROWS = {"README.md": b"rows of a study", "data/train-0.parquet": b"x" * 3000, "load.py": b"import os"}


@pytest.fixture
def study(hub: Hub, qwen2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A necessity study of two checkpoints and a dataset on the hub, with a folder that is here already."""
    monkeypatch.chdir(tmp_path)
    hub.add("Qwen/base", qwen2_checkpoint)
    hub.add("AIcell/IN", qwen2_checkpoint)
    hub.add("own/rows", ROWS, kind="dataset")
    (tmp_path / "prompts").mkdir()
    return write_study(tmp_path)


def write_study(directory: Path, **changes: Any) -> Path:
    """Writes a study's YAML, and beside it those it names."""
    (directory / "grpo.yaml").write_text(yaml.dump({"model_name_or_path": "AIcell/IN", "learning_rate": 1e-6}))
    (directory / "data.yaml").write_text(yaml.dump({"source": ["own/rows", "rows/local.parquet"]}))
    values = {
        "output_dir": "outputs/study", "base_checkpoint": "Qwen/base", "sft_checkpoint": "AIcell/IN",
        "prompts": "prompts", "arms": ["full", "freeze-mid"], "grpo_config": "grpo.yaml", "data_config": "data.yaml",
        "layout_config": "config.json", **changes,
    }  # fmt: skip
    path = directory / "necessity.yaml"
    path.write_text(yaml.dump(values, sort_keys=False))
    return path


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def arguments(study: Path, *more: str) -> list[str]:
    return ["--config", str(study), "--output-dir", "out", *more]


def fetched(directory: Path = Path("out")) -> dict[str, dict[str, Any]]:
    return {entry["repo"]: entry for entry in json.loads((directory / "fetched.json").read_text())}


def test_everything_a_study_names_is_fetched_and_recorded(
    hub: Hub, study: Path, qwen2_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    main(arguments(study))
    entries = fetched()
    assert list(entries) == ["Qwen/base", "AIcell/IN", "own/rows"]
    assert [entry["kind"] for entry in entries.values()] == ["model", "model", "dataset"]
    for (name, _), commit in hub.branches.items():
        assert entries[name.removeprefix("datasets/")]["revision"] == commit
    files = sorted(path.name for path in qwen2_checkpoint.iterdir())
    assert entries["AIcell/IN"]["files"] == files
    assert entries["AIcell/IN"]["bytes"] == sum(path.stat().st_size for path in qwen2_checkpoint.iterdir())
    assert entries["own/rows"]["files"] == ["README.md", "data/train-0.parquet"]
    assert sorted(hub.fetched()) == sorted([*files, *files, "README.md", "train-0.parquet"])
    printed = capsys.readouterr().out
    assert f"AIcell/IN   model    {entries['AIcell/IN']['revision']}" in printed
    assert printed.endswith("fetched: out/fetched.json\n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_checkpoint("AIcell/IN").name == entries["AIcell/IN"]["revision"]


def test_a_dry_run_lists_sizes_and_leaves_no_trace(
    hub: Hub, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(arguments(study, "--dry-run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["repository", "kind", "commit", "files", "size", "to", "fetch"]
    commit = hub.branches["datasets/own/rows", "main"]
    assert lines[3].split() == ["own/rows", "dataset", commit, "2", *["2.9", "KiB"] * 2]
    assert lines[-1].startswith("all")
    assert hub.fetched() == [] and not Path("out").exists() and not list(hub.cache.rglob("refs/*"))
    main(arguments(study))
    capsys.readouterr()
    main(arguments(study, "--dry-run"))
    assert capsys.readouterr().out.splitlines()[-1].endswith("0.0 KiB")


def test_a_dry_run_leaves_the_cache_usable_when_the_hub_has_moved_on(hub: Hub, study: Path) -> None:
    main(arguments(study))
    kept = fetched()["AIcell/IN"]["revision"]
    hub.add("AIcell/IN", {"config.json": b"{}", "model.safetensors": b"later"})
    main(arguments(study, "--dry-run"))
    hub.failing = True
    assert local_checkpoint("AIcell/IN").name == kept


def test_a_finished_fetch_asks_nobody_and_newer_commits_come_with_overwrite(
    hub: Hub, study: Path, qwen2_checkpoint: Path
) -> None:
    main(arguments(study))
    before = fetched()
    newer = hub.add("AIcell/IN", {**files_of(qwen2_checkpoint), "new.txt": b""})
    hub.asked.clear()
    main(arguments(study))
    assert hub.asked == [] and fetched() == before
    main(arguments(study, "--overwrite"))
    assert fetched()["AIcell/IN"]["revision"] == newer != before["AIcell/IN"]["revision"]


def test_the_revision_of_a_source_stands_in_a_key_of_its_own(hub: Hub, study: Path) -> None:
    pinned = hub.branches["datasets/own/rows", "main"]
    hub.add("own/rows", {"later.parquet": b""}, kind="dataset")
    (study.parent / "data.yaml").write_text(f"source: own/rows\nhub_revision: {pinned}\n")
    main(["--config", "data.yaml", "--output_dir", "out"])
    assert fetched()["own/rows"]["revision"] == pinned
    (study.parent / "data.yaml").write_text(f"source: own/rows@{pinned}\nhub_revision: main\n")
    main(["--config", "data.yaml", "--output_dir", "again"])
    assert fetched(Path("again"))["own/rows"]["asked_for"] == pinned


def test_the_shipped_study_of_the_paper_needs_two_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    needed = find_repositories(FetchArguments(study="configs/frankenstein_3b/necessity.yaml"))
    assert [str(repository) for repository in needed] == ["Qwen/Qwen2.5-VL-3B-Instruct", "AIcell/Frankenstein-IN"]
    assert {repository.kind for repository in needed} == {"model"}


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ("frankenstein_3b/deltas.yaml", ["Qwen/Qwen2.5-VL-3B-Instruct", "AIcell/Frankenstein-IN",
                                         "AIcell/Frankenstein-RL", "AIcell/Frankenstein-RL-Frozen-Mid"]),
        ("openmmreasoner_7b/deltas.yaml", ["Qwen/Qwen2.5-VL-7B-Instruct", "OpenMMReasoner/OpenMMReasoner-ColdStart",
                                           "OpenMMReasoner/OpenMMReasoner-RL"]),
        ("openmmreasoner_7b/splice.yaml", ["OpenMMReasoner/OpenMMReasoner-ColdStart",
                                           "OpenMMReasoner/OpenMMReasoner-RL"]),
        ("frankenstein_3b/abilities.yaml", ["Qwen/Qwen2.5-VL-7B-Instruct"]),
    ],
)  # fmt: skip
def test_what_deltas_and_splices_read_is_found(config: str, needed: list[str]) -> None:
    found = find_repositories(FetchArguments(study=str(REPOSITORY_ROOT / "configs" / config)))
    assert [str(repository) for repository in found] == needed


def test_encoders_of_a_tower_probe_are_found_with_those_of_timm(tmp_path: Path) -> None:
    config = tmp_path / "tower.yaml"
    config.write_text("data: a:rl,test\nencoder: [dino=facebook/dinov2-base, resnet=timm:resnet50.a1_in1k, o=out/e]\n")
    found = [str(each) for each in find_repositories(FetchArguments(study=str(config)))]
    assert found == ["facebook/dinov2-base", "timm/resnet50.a1_in1k", "out/e"]


def test_files_that_a_study_names_for_a_task_or_by_themselves_are_followed(study: Path) -> None:
    (study.parent / "swap.yaml").write_text("describe_model: own/describer\n")
    (study.parent / "pairs.yaml").write_text("source: own/pictures\n")
    whole = {"necessity": "necessity.yaml", "swap": "swap.yaml", "pairs": ["recognition:pairs.yaml"],
             "datasets": ["own/bench@main"], "tasks": ["bench"]}  # fmt: skip
    (study.parent / "study.yaml").write_text(yaml.dump(whole))
    found = {str(each): each.kind for each in find_repositories(FetchArguments(study="study.yaml"))}
    assert found == {"Qwen/base": "model", "AIcell/IN": "model", "own/rows": "dataset", "own/describer": "model",
                     "own/pictures": "dataset", "own/bench@main": "dataset"}  # fmt: skip
    (study.parent / "swap.yaml").write_text("necessity: study.yaml\n")
    with pytest.raises(ValueError, match=r"swap.yaml names study.yaml, which names it in turn"):
        find_repositories(FetchArguments(study="study.yaml"))


def test_a_grpo_configuration_and_flags_are_enough(hub: Hub, study: Path) -> None:
    main(["--config=grpo.yaml"])
    assert list(fetched(Path("outputs", "fetched", f"{study.parent.name}-grpo"))) == ["AIcell/IN"]
    commit = hub.branches["AIcell/IN", "main"]
    main(["--checkpoints", f"AIcell/IN@{commit}", "Qwen/base", "--datasets", "own/rows"])
    entries = fetched(Path("outputs", "fetched", "named"))
    assert entries["AIcell/IN"]["asked_for"] == entries["AIcell/IN"]["revision"] == commit
    assert set(entries) == {"AIcell/IN", "Qwen/base", "own/rows"}


def test_a_study_that_builds_everything_itself_needs_nothing(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    main(["--config", "configs/pocket/necessity.yaml", "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith("nothing to fetch: configs/pocket/necessity.yaml names no checkpoint")
    assert fetched(tmp_path / "out") == {} and hub.asked == []


def test_a_connection_that_breaks_off_is_one_line_and_only_the_rest_is_fetched_again(
    hub: Hub, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.branches["AIcell/IN", "main"]
    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.file_download.time", at_once)  # it would wait a second before each new try
    hub.breaks_at = f"AIcell/IN/resolve/{commit}/model.safetensors"
    with pytest.raises(ValueError, match="checkpoint AIcell/IN ") as caught:
        main(arguments(study))
    assert "\n" not in str(caught.value)
    assert read_run(Path("out"))["status"] == "failed" and not Path("out", "fetched.json").exists()
    hub.breaks_at = None
    hub.asked.clear()
    main(arguments(study))
    assert not any("Qwen/base/resolve" in line for line in hub.asked)
    assert hub.fetched().count("model.safetensors") == 1 and "config.json" not in hub.fetched()
    assert set(fetched()) == {"Qwen/base", "AIcell/IN", "own/rows"}


@pytest.mark.slow
def test_the_command_killed_in_a_download_continues(hub: Hub, study: Path) -> None:
    places = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(hub.cache), "PYTHONPATH": str(REPOSITORY_ROOT)}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "models.fetch", *arguments(study)]
    hub.holds_at = "own/rows/resolve"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not any(line.startswith("GET /datasets/own/rows/resolve") for line in hub.asked):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.holds_at = None
    hub.asked.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(fetched()) == {"Qwen/base", "AIcell/IN", "own/rows"}
    assert sorted(set(hub.fetched())) == ["README.md", "train-0.parquet"]
    failed = subprocess.run(
        [*command[:3], "--checkpoints", "AIcell/nothing"], env=environment, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2 and failed.stderr.startswith("error: checkpoint AIcell/nothing is not a local folder")
    assert failed.stderr.count("\n") == 1


def test_a_checkpoint_that_is_not_there_stops_everything_before_it_begins(hub: Hub, study: Path) -> None:
    write_study(study.parent, sft_checkpoint="AIcell/else")
    with pytest.raises(ValueError, match=r"AIcell/else .*no such model.*\(named as sft_checkpoint in .*necessity"):
        main(arguments(study))
    assert hub.fetched() == [] and not Path("out").exists()


def test_data_that_is_not_there_is_said_first_and_fails_last(
    hub: Hub, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(study.parent, prompts="data/mine")
    message = r"dataset data/mine .*has no such dataset.*a prompt set of your own is built before the study"
    with pytest.raises(ValueError, match=message):
        main(arguments(study))
    assert "dataset data/mine is not a local folder" in capsys.readouterr().out
    assert "train-0.parquet" in hub.fetched() and not Path("out", "fetched.json").exists()
    (study.parent / "data" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="out was made with repositories"):
        main(arguments(study))
    main(arguments(study, "--overwrite"))
    assert set(fetched()) == {"Qwen/base", "AIcell/IN", "own/rows"}


def only_pickled(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("AIcell/IN", {**{k: v for k, v in files.items() if "safetensors" not in k}, "pytorch_model.bin": b"\x80"})


def gated(hub: Hub, files: dict[str, bytes]) -> None:
    hub.gated.add("AIcell/IN")


def other_family(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("AIcell/IN", {**files, "config.json": b'{"model_type": "llama"}'})


def no_weights(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("AIcell/IN", {"README.md": b""})


def damaged(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("AIcell/IN", {**files, "model.safetensors": files["model.safetensors"][:-10]})


def huge(hub: Hub, files: dict[str, bytes]) -> None:
    hub.claims["model.safetensors"] = 2**60


def down(hub: Hub, files: dict[str, bytes]) -> None:
    from huggingface_hub import constants

    constants.ENDPOINT = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("change", "message", "fetches"),
    [
        (only_pickled, r"AIcell/IN contains only pickled weights \(pytorch_model\.bin\), which can run code", []),
        (gated, r"AIcell/IN is gated: ask for access at", []),
        (other_family, "model_type 'llama' is not supported", ["config.json"]),
        (no_weights, "AIcell/IN contains no safetensors file", []),
        (damaged, r"model\.safetensors: .* truncated or damaged", None),
        (huge, r"has .* GiB free, but 1073741824\.00 GiB would be fetched", []),
        (down, r"AIcell/IN cannot be looked up, and http://127\.0\.0\.1:9 cannot be reached", []),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(
    hub: Hub, study: Path, qwen2_checkpoint: Path, change: Callable[[Hub, dict[str, bytes]], None], message: str,
    fetches: list[str] | None,
) -> None:  # fmt: skip
    change(hub, files_of(qwen2_checkpoint))
    with pytest.raises(ValueError, match=message) as caught:
        main(["--checkpoints", "AIcell/IN", "--output_dir", "out"])
    assert "\n" not in str(caught.value)
    assert fetches is None or hub.fetched() == fetches
    assert not Path("out", "fetched.json").exists()


@pytest.mark.slow
def test_a_cache_that_lost_or_moved_what_was_fetched_is_said(hub: Hub, study: Path, qwen2_checkpoint: Path) -> None:
    main(arguments(study))
    kept = local_checkpoint("AIcell/IN")
    later = hub.add("AIcell/IN", {**files_of(qwen2_checkpoint), "new.txt": b""})
    local_checkpoint("AIcell/IN")
    with pytest.raises(ValueError, match=f"AIcell/IN now points to {later} in the cache, but {kept.name} was fetched"):
        main(arguments(study))
    main(arguments(study, "--overwrite"))
    main(arguments(study))
    (local_checkpoint("AIcell/IN") / "tokenizer.json").unlink()
    hub.failing = True
    with pytest.raises(ValueError, match="no longer in the cache; --overwrite fetches again"):
        main(arguments(study))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "study.yaml: no such file"),
        ("- a\n", "expected `name: value` lines, found list"),
        ("a: [", "not readable as YAML"),
        ("grpo_config: nowhere.yaml\n", "nowhere.yaml: no such file"),
    ],
)
def test_a_malformed_study_is_one_line(hub: Hub, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        main(["--config", str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing is named; expected --config FILE, --checkpoints or --datasets"),
        (["--checkpoints", "nothing"], "--checkpoints 'nothing' is not a hub id"),
        (["--datasets", "a/b/c"], "--datasets 'a/b/c' is not a hub id"),
        (["--configs", "a.yaml", "--datasets", "a/b"], "unknown argument '--configs'"),
    ],
)
def test_a_mistaken_flag_is_one_line(hub: Hub, argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(argv)
