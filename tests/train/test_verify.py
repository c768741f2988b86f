"""The command that proves, or refutes, freezing between any two checkpoints."""

import json
import shutil
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
    main([*arguments(pocket_checkpoint, end, "mid"), "--report", str(report), "--allow-unchanged"])
    proof = json.loads(report.read_text())
    assert [tensor["name"] for tensor in proof["tensors"]] == list(pocket_layout.parameters)
    assert proof["breaches"] == [] and proof["frozen"] == ["mid"]
    assert all(
        tensor["sha256_start"] == tensor["sha256_end"] and tensor["num_changed"] == 0 for tensor in proof["tensors"]
    )


def test_the_hubs_spelling_of_the_same_weights_verifies(
    pocket_checkpoint: Path, pocket_layout: Layout, hub_spelling: Path, flipped: Callable[..., None]
) -> None:
    for start, end in ((pocket_checkpoint, hub_spelling), (hub_spelling, pocket_checkpoint)):
        main(["--start", str(start), "--end", str(end), "--identical"])
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


def test_nothing_that_moved_is_a_failure_unless_it_is_allowed(
    pocket_checkpoint: Path, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a merge of an adapter that PEFT loaded into nothing."""
    end = copy_of("end")
    with pytest.raises(SystemExit) as exit_info:
        main(arguments(pocket_checkpoint, end, "mid"))
    assert exit_info.value.code == EXIT_BREACH
    assert "WARNING: nothing moved. All " in capsys.readouterr().out
    main([*arguments(pocket_checkpoint, end, "mid"), "--allow-unchanged"])
    assert "proof: all 24 tensors of mid" in capsys.readouterr().out


def test_a_lossless_conversion_is_proved_by_either_way_of_naming_everything(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    end = copy_of("end")
    everything = ("llm", "vision", "projector", "embed", "norm", *(() if pocket_layout.tied else ("head",)))
    folders = ["--start", str(pocket_checkpoint), "--end", str(end)]
    asked = ([*folders, "--identical"], [*folders, "--frozen", *everything])
    for words in asked:
        main(words)
        assert f"proof: all {len(pocket_layout.parameters)} tensors of" in capsys.readouterr().out
    victim = next(name for name in pocket_layout.parameters if name.endswith("merger.ln_q.weight"))
    flipped(end, victim)
    for words in asked:
        with pytest.raises(SystemExit):
            main(words)
        assert f"breach: {victim}\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--frozen", "mid", "--identical"], []])
def test_what_must_be_identical_is_named_once(pocket_checkpoint: Path, words: list[str]) -> None:
    with pytest.raises(ValueError, match="of --frozen and --identical; expected --frozen BLOCK … or --identical"):
        main(["--start", str(pocket_checkpoint), "--end", str(pocket_checkpoint), *words])


def resize_vocabulary(directory: Path, change: int) -> str:
    """Pads or cuts the embedding matrix in weights and configuration, and returns its name."""
    checkpoint = open_checkpoint(directory)
    (name,) = (name for name in checkpoint.tensors if name.endswith("embed_tokens.weight"))
    rows, width = checkpoint.tensors[name].shape
    size = len(checkpoint.data(name)) // rows
    content = {stored.name_on_disk: bytes(checkpoint.data(stored.name)) for stored in checkpoint.tensors.values()}
    entries = [
        (stored.name_on_disk, stored.dtype, (rows + change, width) if stored.name == name else stored.shape)
        for stored in checkpoint.tensors.values()
    ]
    on_disk = checkpoint.tensors[name].name_on_disk
    content[on_disk] = (content[on_disk] + bytes(size * max(0, change)))[: size * (rows + change)]
    write_safetensors(directory / "model.safetensors", entries, content.__getitem__)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["vocab_size"] = rows + change
    path.write_text(json.dumps(config))
    return name


@pytest.mark.parametrize("change", [64, -8])
def test_a_resized_vocabulary_leaves_everything_else_to_compare(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None],
    capsys: pytest.CaptureFixture[str], change: int,
) -> None:  # fmt: skip
    end = copy_of("end")
    name = resize_vocabulary(end, change)
    rows = pocket_layout.parameters[name].shape[0]
    for words in ((pocket_checkpoint, end, "mid"), (end, pocket_checkpoint, "mid")):
        with pytest.raises(SystemExit):
            main(arguments(*words))
        assert "WARNING: nothing moved" in capsys.readouterr().out
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid", "vision"]))
    trained = next(other for other in plan.trainable if other != name)
    flipped(end, trained)
    main(arguments(pocket_checkpoint, end, "mid", "vision"))
    printed = capsys.readouterr().out
    assert f"proof: all {len(plan.frozen)} tensors of mid vision are bit-identical" in printed
    assert f"not compared: {name}: " in printed and f"of the first {min(rows, rows + change)} rows, 0 differ" in printed
    flipped(end, name)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments(pocket_checkpoint, end, "mid", "embed"))
    assert exit_info.value.code == EXIT_BREACH
    printed = capsys.readouterr().out
    assert f"NOT PROVED: {name} should be identical" in printed and ", 1 differ" in printed
    flipped(end, plan.frozen[0])
    with pytest.raises(SystemExit):
        main(arguments(pocket_checkpoint, end, "mid", "vision"))
    assert f"breach: {plan.frozen[0]}" in capsys.readouterr().out


def test_a_head_that_only_the_end_has_does_not_matter_to_the_tower(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA with `modules_to_save: [lm_head]` on a tied model; PEFT unties it at the top of the configuration only."""
    end = copy_of("end")
    checkpoint = open_checkpoint(end)
    (embed,) = (name for name in checkpoint.tensors if name.endswith("embed_tokens.weight"))
    stored = checkpoint.tensors[embed]
    content = {one.name_on_disk: bytes(checkpoint.data(one.name)) for one in checkpoint.tensors.values()}
    content["lm_head.weight"] = bytes(byte ^ 1 for byte in content[stored.name_on_disk])
    entries = [(one.name_on_disk, one.dtype, one.shape) for one in checkpoint.tensors.values()]
    entries.append(("lm_head.weight", stored.dtype, stored.shape))
    write_safetensors(end / "model.safetensors", entries, content.__getitem__)
    config = json.loads((end / "config.json").read_text())
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = False, True
    (end / "config.json").write_text(json.dumps(config))
    main(arguments(pocket_checkpoint, end, "vision", "llm"))
    printed = capsys.readouterr().out
    assert "proof: all " in printed and f"not compared: lm_head.weight: only {end} has it" in printed
    for words in (["--frozen", "head"], ["--identical"]):
        with pytest.raises(SystemExit):
            main(["--start", str(pocket_checkpoint), "--end", str(end), *words])
        assert "NOT PROVED: lm_head.weight should be identical" in capsys.readouterr().out


@pytest.fixture(scope="module")
def adapters(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with adapters on the pocket model: on its last two layers, before training, and with a saved norm."""
    from tests.models.adapters.making import write_adapter

    root = tmp_path_factory.mktemp("adapters")
    late = {"layers_to_transform": [4, 5], "rank_pattern": {"down_proj": 2}}
    write_adapter(pocket_checkpoint, root / "late", **late)
    write_adapter(pocket_checkpoint, root / "untrained", std=0.0, **late)
    write_adapter(pocket_checkpoint, root / "saved", modules_to_save=["merger"], **late)
    write_adapter(pocket_checkpoint, root / "early", layers_to_transform=[0, 1])
    write_adapter(pocket_checkpoint, root / "head", modules_to_save=["lm_head"], **late)
    return root


@pytest.mark.parametrize("scale", [8, float("inf")])
def test_a_zero_factor_is_no_proof_beside_values_that_are_not_finite(
    pocket_checkpoint: Path, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float
) -> None:
    """0·NaN and 0·∞ are NaN, in a block that looks untouched."""
    from tests.models.adapters.making import edit_config, edit_tensors

    broken = Path(shutil.copytree(adapters / "untrained", tmp_path / "broken"))
    edit_config(broken, lora_alpha=scale)
    if scale == 8:
        edit_tensors(broken, lambda tensors: {n: t / 0 if "lora_A" in n else t for n, t in tensors.items()})
    with pytest.raises(ValueError, match=r"holds NaN or infinite values|lora_alpha is inf; expected"):
        main([*arguments(pocket_checkpoint, broken, "late"), "--allow-unchanged", "true"])
    assert "proof" not in capsys.readouterr().out


def test_the_names_of_an_adapter_prove_which_blocks_it_leaves_alone(
    pocket_checkpoint: Path, pocket_layout: Layout, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "reach.json"
    main([*arguments(pocket_checkpoint, adapters / "late", "early", "mid", "vision"), "--report", str(report)])
    printed = capsys.readouterr().out
    frozen = plan_freeze(pocket_layout, FreezeArguments(freeze=["early", "mid", "vision"])).frozen
    assert f"proof: all {len(frozen)} tensors of early mid vision stay bit-identical when" in printed
    (row,) = (line.split() for line in printed.splitlines() if line.startswith("late "))
    assert row[2:] == ["4", "4-5", "2,", "4", "0"]
    tensors = {one["name"]: one for one in json.loads(report.read_text())["tensors"]}
    assert list(tensors) == list(pocket_layout.parameters)
    assert {name for name, one in tensors.items() if one["update"] != "none"} == {
        f"model.language_model.layers.{layer}.{module}.weight"
        for layer in (4, 5) for module in ("self_attn.q_proj", "mlp.down_proj")
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--frozen", "late.mlp"], ["--identical"]])
def test_a_block_that_an_adapter_changes_is_a_breach(
    pocket_checkpoint: Path, adapters: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--start", str(pocket_checkpoint), "--end", str(adapters / "late"), *words])
    assert exit_info.value.code == EXIT_BREACH
    printed = capsys.readouterr().out
    assert "breach: model.language_model.layers.4.mlp.down_proj.weight: an update of rank 2" in printed
    assert "BREACH: the adapter changes " in printed and "proof" not in printed


def test_layers_to_transform_that_reach_the_tower_are_found(
    pocket_checkpoint: Path, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT takes the tower's blocks 0 and 1 for layers too (`findings/peft-layers-to-transform-…`)."""
    main(arguments(pocket_checkpoint, adapters / "early", "mid", "late", "projector"))
    with pytest.raises(SystemExit):
        main(arguments(pocket_checkpoint, adapters / "early", "vision"))
    printed = capsys.readouterr().out
    assert all(f"breach: model.visual.blocks.{block}.mlp.down_proj.weight: " in printed for block in (0, 1))


def test_the_verdict_on_an_adapter_is_that_on_its_merge(
    pocket_checkpoint: Path, adapters: Path, tmp_path: Path
) -> None:
    from models.adapters.opening import open_model
    from models.checkpoint import write_like

    for name, moved in (("late", "late"), ("saved", "projector")):
        merged = tmp_path / name
        merged.mkdir()
        start = open_checkpoint(pocket_checkpoint)
        write_like(merged, start=start, weights=open_model(str(adapters / name)))
        for end in (adapters / name, merged):
            main(arguments(pocket_checkpoint, end, "early", "mid", "vision", "embed"))
            with pytest.raises(SystemExit):
                main(arguments(pocket_checkpoint, end, moved))


def test_a_head_of_its_own_counts_for_the_matrix_that_the_model_ties_it_to(
    pocket_checkpoint: Path, pocket_layout: Layout, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pocket_layout.tied
    main(arguments(pocket_checkpoint, adapters / "head", "vision", "early", "norm"))
    for block in ("head", "embed"):
        with pytest.raises(SystemExit):
            main(arguments(pocket_checkpoint, adapters / "head", block))
        assert "embed_tokens.weight: a weight trained in full" in capsys.readouterr().out


def test_an_untrained_adapter_changes_nothing_and_that_is_said(
    pocket_checkpoint: Path, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(pocket_checkpoint, adapters / "untrained", "mid")
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == EXIT_BREACH
    printed = capsys.readouterr().out
    assert "WARNING: nothing moves. All 4 updates of the adapter are zero" in printed
    main([*words, "--allow-unchanged"])
    main(["--start", str(pocket_checkpoint), "--end", str(adapters / "untrained"), "--identical"])
    assert "stay bit-identical when the adapter is merged" in capsys.readouterr().out
