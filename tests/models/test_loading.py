"""Names on the hub, against a web server that answers as the hub does; and what loading refuses."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from models.hub import Repository, hub_commit, snapshot
from models.layout import layout_from_config, layout_of
from models.loading import (
    DEFAULT_ATTENTION,
    attentions_of,
    check_checkpoint,
    load_model,
    local_checkpoint,
    resolved_revision,
)
from tests.models.damage import MISFITS

Hub = Any
"""tests/models/conftest.py"""


def test_a_hub_id_is_fetched_once_and_loads(hub: Hub, qwen2_checkpoint: Path) -> None:
    commit = hub.add("AIcell/IN", qwen2_checkpoint)
    directory = local_checkpoint("AIcell/IN")
    assert directory.name == commit == resolved_revision("AIcell/IN")
    assert load_model(directory).num_parameters() == load_model(qwen2_checkpoint).num_parameters()
    assert sorted(hub.fetched()) == sorted(path.name for path in qwen2_checkpoint.iterdir())
    hub.asked.clear()
    assert local_checkpoint("AIcell/IN") == directory
    assert hub.fetched() == []


def test_the_configuration_alone_can_be_fetched(hub: Hub, qwen2_checkpoint: Path) -> None:
    hub.add("AIcell/IN", qwen2_checkpoint)
    local_checkpoint("AIcell/IN", config_only=True)
    assert hub.fetched() == ["config.json"]


def test_no_code_no_pickle_and_no_training_checkpoint_is_fetched(hub: Hub, qwen2_checkpoint: Path) -> None:
    files = {path.name: path.read_bytes() for path in qwen2_checkpoint.iterdir()}
    unwanted = (
        "modeling.py",
        "pytorch_model.bin",
        "optimizer.pt",
        "checkpoint-9/model.safetensors",
        "checkpoint-9/a.json",
    )
    hub.add("AIcell/IN", {**files, **dict.fromkeys(unwanted, b"import os")})
    local_checkpoint("AIcell/IN")
    assert sorted(hub.fetched()) == sorted(files)


def test_a_pinned_revision_stays_when_the_branch_moves(hub: Hub, qwen2_checkpoint: Path) -> None:
    first = hub.add("AIcell/IN", qwen2_checkpoint)
    second = hub.add("AIcell/IN", {**dict.fromkeys(["config.json"], b"{}"), "model.safetensors": b""})
    hub.add("AIcell/IN", qwen2_checkpoint, branch="v1.0")
    assert first != second
    for name, commit in (("AIcell/IN", second), (f"AIcell/IN@{first}", first), ("AIcell/IN@v1.0", first)):
        assert local_checkpoint(name).name == commit == resolved_revision(name)


def test_a_commit_may_be_cut_short_where_the_cache_holds_it(hub: Hub, qwen2_checkpoint: Path) -> None:
    commit = hub.add("AIcell/IN", qwen2_checkpoint)
    with pytest.raises(ValueError, match=f"AIcell/IN@{commit[:7]} has no revision .* a commit of 40 digits"):
        local_checkpoint(f"AIcell/IN@{commit[:7]}")
    local_checkpoint("AIcell/IN")
    assert local_checkpoint(f"AIcell/IN@{commit[:7]}").name == commit == resolved_revision(f"AIcell/IN@{commit[:9]}")


def test_a_local_folder_has_no_revision_and_asks_nobody(
    hub: Hub, qwen2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("out/final", qwen2_checkpoint)
    (tmp_path / "out" / "final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_checkpoint("out/final") == Path("out/final")
    assert resolved_revision("out/final") is None
    assert hub.asked == []


@pytest.mark.parametrize("how", ["unreachable", "offline"])
def test_without_the_hub_the_cache_serves(
    hub: Hub, qwen2_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from huggingface_hub import constants

    commit = hub.add("AIcell/IN", qwen2_checkpoint)
    hub.add("AIcell/RL", qwen2_checkpoint)
    hub.add("own/rows", {"rows.parquet": b"rows"}, kind="dataset")
    local_checkpoint("AIcell/IN")
    local_checkpoint("AIcell/RL", config_only=True)
    rows = Repository(repo="own/rows", kind="dataset")
    snapshot(rows)
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("AIcell/IN", f"AIcell/IN@{commit}", f"AIcell/IN@{commit[:8]}"):
        assert local_checkpoint(name).name == commit == resolved_revision(name)
    assert (snapshot(rows) / "rows.parquet").read_bytes() == b"rows"
    reason = "HF_HUB_OFFLINE is set" if how == "offline" else "http://127.0.0.1:9 cannot be reached"
    for ask in (
        lambda: local_checkpoint("AIcell/RL"),  # its weights were never fetched
        lambda: local_checkpoint("AIcell/else"),
        lambda: snapshot(Repository(repo="AIcell/IN", kind="dataset")),
    ):
        with pytest.raises(ValueError, match=f"not completely in the cache, and {reason}; .*models.fetch") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_the_hubs_newest_commit_can_be_asked_for_alone(hub: Hub) -> None:
    hub.add("own/rows", {"rows.parquet": b"older"}, kind="dataset")
    newest = hub.add("own/rows", {"rows.parquet": b"rows"}, kind="dataset")
    assert hub_commit(Repository(repo="own/rows", kind="dataset")) == newest
    assert not any("resolve" in line for line in hub.asked) and not hub.cache.exists()


def test_an_uncached_id_has_no_resolved_revision(hub: Hub, qwen2_checkpoint: Path) -> None:
    hub.add("AIcell/IN", qwen2_checkpoint)
    with pytest.raises(ValueError, match="checkpoint AIcell/IN is not a local folder and not completely in the cache"):
        resolved_revision("AIcell/IN")
    assert hub.asked == []


def unknown(hub: Hub) -> None:
    del hub.branches["AIcell/IN", "main"]


def gated(hub: Hub) -> None:
    hub.gated.add("AIcell/IN")


def failing(hub: Hub) -> None:
    hub.failing = True


def full_disk(hub: Hub) -> None:
    hub.cache.write_text("a file where the cache should be")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown, r"has no such model, or it is private: correct the name, or log in"),
        (gated, r"is gated: ask for access at http://127\.0\.0\.1:\d+/AIcell/IN and log in"),
        (failing, r"cannot be fetched: http://127\.0\.0\.1:\d+ answers 501; try again later"),
        (full_disk, r"cannot be written to the cache .*hub-cache: .*"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, qwen2_checkpoint: Path, change: Callable[[Hub], None], message: str
) -> None:
    hub.add("AIcell/IN", qwen2_checkpoint)
    change(hub)
    with pytest.raises(ValueError, match=f"checkpoint AIcell/IN .*{message}") as caught:
        local_checkpoint("AIcell/IN")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/checkpoint", "does not exist; expected a folder or a hub id"),
        ("/no/checkpoint", "does not exist; expected a folder or a hub id"),
        ("./checkpoint", "does not exist; expected a folder or a hub id"),
        ("checkpoint", "does not exist; expected a folder or a hub id"),
        ("AIcell/IN@", "does not exist; expected a folder or a hub id"),
        ("AIcell/a--b", "is not a valid name on the hub"),
    ],
)
def test_what_is_no_hub_id_is_refused_without_asking(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        local_checkpoint(name)
    assert hub.asked == []


def test_a_file_is_no_checkpoint(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").touch()
    with pytest.raises(ValueError, match="checkpoint out/weights is a file; expected the folder that holds it, out"):
        local_checkpoint("out/weights")


def test_weights_that_are_missing_are_not_made_up(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    MISFITS["lost_tensor"][0](directory)
    with pytest.raises(ValueError, match=r"has no weights for '.*layers\.0\.mlp\.up_proj\.weight' \(1 such\)"):
        load_model(directory)


def name_attention(directory: Path, place: str, attention: str) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    section, _, key = place.rpartition(".")
    (config[section] if section else config)[key] = attention
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("written", ["eager", "flash_attention_2"])
@pytest.mark.parametrize(
    "place",
    [
        "_attn_implementation",
        "attn_implementation",
        "text_config._attn_implementation",
        "vision_config.attn_implementation",
    ],
)
@pytest.mark.cases_slow
def test_the_attention_that_was_asked_for_runs_whatever_the_configuration_names(
    pocket_checkpoint: Path, tmp_path: Path, place: str, written: str
) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    name_attention(directory, place, written)
    for asked in ("sdpa", "eager", None):
        assert attentions_of(load_model(directory, attn_implementation=asked)) == {asked or DEFAULT_ATTENTION}
    assert list(layout_of(directory).parameters) == list(layout_of(pocket_checkpoint).parameters)
    config = json.loads((directory / "config.json").read_text())
    assert layout_from_config(config).num_layers == layout_of(pocket_checkpoint).num_layers


@pytest.mark.skipif(find_spec("flash_attn") is not None or find_spec("kernels") is not None, reason="it is installed")
def test_an_attention_that_is_not_installed_is_one_line(pocket_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="attn_implementation 'flash_attention_2' is not available here: ") as caught:
        load_model(pocket_checkpoint, attn_implementation="flash_attention_2")
    assert "\n" not in str(caught.value)


def test_a_file_in_the_current_folder_and_an_empty_name_say_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The empty path would mean the current folder, and so does the parent of a name without a slash."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").touch()
    with pytest.raises(ValueError, match=f"expected the folder that holds it, {tmp_path}$"):
        check_checkpoint("README.md")
    for read in (check_checkpoint, local_checkpoint):
        with pytest.raises(ValueError, match="name is empty; expected a folder or a hub id"):
            read("")
