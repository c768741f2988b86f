"""The command that proves, or refutes, freezing between any two checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.checkpoint import open_checkpoint
from models.layout import Layout
from models.shards import write_safetensors
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.verify import EXIT_BREACH, main


def arguments(start: Path, end: Path, *frozen: str) -> list[str]:
    return ["--start", str(start), "--end", str(end), "--frozen", *frozen]


def without(directory: Path, name: str) -> None:
    """Rewrites a checkpoint without one tensor."""
    checkpoint = open_checkpoint(directory)
    kept = {stored.name_on_disk: stored for stored in checkpoint.tensors.values() if stored.name != name}
    content = {name_on_disk: bytes(checkpoint.data(stored.name)) for name_on_disk, stored in kept.items()}
    entries = [(stored.name_on_disk, stored.dtype, stored.shape) for stored in kept.values()]
    write_safetensors(directory / "model.safetensors", entries, content.__getitem__)


def test_a_block_that_stayed_is_proved(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    end = copy_of("end")
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"]))
    flipped(end, plan.trainable[0])
    main(arguments(pocket_checkpoint, end, "mid"))
    assert f"proof: all {len(plan.frozen)} tensors of mid are bit-identical" in capsys.readouterr().out


def test_a_breach_names_the_tensor_and_fails(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    end = copy_of("end")
    victim = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"])).frozen[3]
    flipped(end, victim)
    main(arguments(pocket_checkpoint, end, "early", "late"))
    report = end.parent / "proof.json"
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments(pocket_checkpoint, end, "mid", "vision"), "--report", str(report)])
    assert exit_info.value.code == EXIT_BREACH
    assert f"breach: {victim}\n" in capsys.readouterr().out
    assert json.loads(report.read_text())["breaches"] == [victim]


def test_the_report_holds_every_tensor(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path]
) -> None:
    end = copy_of("end")
    report = end.parent / "deep" / "proof.json"
    main([*arguments(pocket_checkpoint, end, "mid"), "--report", str(report)])
    proof = json.loads(report.read_text())
    assert [tensor["name"] for tensor in proof["tensors"]] == list(pocket_layout.parameters)
    assert proof["breaches"] == [] and proof["frozen"] == ["mid"]
    assert all(
        tensor["sha256_start"] == tensor["sha256_end"] and tensor["num_changed"] == 0 for tensor in proof["tensors"]
    )


def test_the_hubs_spelling_of_the_same_weights_verifies(
    pocket_checkpoint: Path, pocket_layout: Layout, hub_spelling: Path, flipped: Callable[..., None]
) -> None:
    main(arguments(pocket_checkpoint, hub_spelling, "llm", "vision", "projector"))
    main(arguments(hub_spelling, pocket_checkpoint, "llm", "vision", "projector"))
    flipped(hub_spelling, plan_freeze(pocket_layout, FreezeArguments(freeze=["vision:0"])).frozen[0])
    with pytest.raises(SystemExit):
        main(arguments(pocket_checkpoint, hub_spelling, "vision"))


def test_checkpoints_with_different_tensors_are_refused(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path]
) -> None:
    end = copy_of("end")
    name = next(iter(pocket_layout.parameters))
    without(end, name)
    with pytest.raises(ValueError, match=f"end: lacks '{name}'"):
        main(arguments(pocket_checkpoint, end, "mid"))
    with pytest.raises(ValueError, match=f"has '{name}', which .*end lacks"):
        main(arguments(end, pocket_checkpoint, "mid"))


def test_other_blocks_can_be_named_by_cuts(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None]
) -> None:
    end = copy_of("end")
    flipped(end, plan_freeze(pocket_layout, FreezeArguments(freeze=["llm:1"])).frozen[0])
    main([*arguments(pocket_checkpoint, end, "early"), "--cuts", "1", "3"])
    with pytest.raises(SystemExit):
        main([*arguments(pocket_checkpoint, end, "mid"), "--cuts", "1", "3"])


def test_a_truncated_or_missing_checkpoint_is_refused(pocket_checkpoint: Path, copy_of: Callable[[str], Path]) -> None:
    end = copy_of("end")
    content = (end / "model.safetensors").read_bytes()
    (end / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: .* truncated"):
        main(arguments(pocket_checkpoint, end, "mid"))
    with pytest.raises(ValueError, match="does not exist"):
        main(arguments(pocket_checkpoint, end / "nowhere", "mid"))
