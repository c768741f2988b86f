"""Masks of elements: what they hold, and that a run leaves frozen elements bit-identical."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.freezing import Case, launch, prepare
from models.blocks import make_partition
from models.checkpoint import Checkpoint, cast_bytes, open_checkpoint
from models.layout import Layout, layout_of
from models.shards import DTYPES
from tests.models.damage import read_tensors, write_tensors
from tests.train.test_sft import flags
from train.freezing import masked
from train.freezing.arms import parse_arms
from train.freezing.elements import CHUNK, MASK_FILE, ElementMask, _draw, build_mask, masked_plan, read_mask, write_mask
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.necessity import main as necessity
from train.sft import main
from train.verify import main as verify

SHARE = 0.3
HOSTILE: dict[str, Any] = {"weight_decay": 0.5, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}


def write_changed(start: Path, end: Path) -> None:
    """Writes a checkpoint in which every tensor but those of layer 5 differs in a share of its elements.

    The final norm differs in all of them.
    """
    shutil.copytree(start, end)
    random = torch.Generator().manual_seed(0)
    tensors = read_tensors(start)
    for name, own in tensors.items():
        share = 0.0 if "layers.5." in name else 1.0 if name == "model.norm.weight" else SHARE
        chosen = torch.rand(own.shape, generator=random) < share
        tensors[name] = torch.where(chosen, own.float() * 1.5 + 1.0, own.float()).to(own.dtype)
    write_tensors(end, tensors)


@pytest.fixture(scope="module")
def pair(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    end = tmp_path_factory.mktemp("pair") / "end"
    write_changed(pocket_checkpoint, end)
    return pocket_checkpoint, end


def mask_of(kind: str, pair: tuple[Path, Path], layout: Layout, **freeze: Any) -> ElementMask:
    words = [kind, *map(str, pair)]
    plan = plan_freeze(layout, FreezeArguments(train_elements=words, **freeze))
    return build_mask(words, open_checkpoint(pair[0]), plan)


def expected_frozen(pair: tuple[Path, Path], name: str) -> Any:
    """Which elements are equal in both checkpoints, computed with torch."""
    one, other = (open_checkpoint(path).tensor(name).flatten() for path in pair)
    return (one == other).numpy()


def test_changed_and_unchanged_are_complements_and_random_has_the_same_size(
    pair: tuple[Path, Path], pocket_layout: Layout
) -> None:
    changed, unchanged, random, other = (
        mask_of(kind, pair, pocket_layout) for kind in ("changed", "unchanged", "random:1", "random:2")
    )
    for name, size in changed.sizes.items():
        assert (changed.frozen(name) == expected_frozen(pair, name)).all(), name
        assert (changed.frozen(name) != unchanged.frozen(name)).all(), name
        assert (
            (~random.frozen(name)).sum() == changed.counts[name] == random.counts[name] == size - unchanged.counts[name]
        )
    assert any((random.bits[name] != other.bits[name]).any() for name in random.bits)
    assert random.sha256 == mask_of("random:1", pair, pocket_layout).sha256 != other.sha256
    plan = plan_freeze(pocket_layout, FreezeArguments())
    left = masked_plan(plan, changed)
    still = {name for name in plan.trainable if "layers.5." in name}
    assert still and set(plan.trainable) - set(left.trainable) == still <= set(left.frozen)
    frozen_too = mask_of("changed", pair, pocket_layout, freeze=["mid"])
    assert not any("layers.2." in name for name in frozen_too.counts)


def test_a_random_mask_is_uniform_over_chunks() -> None:
    size, count = 2 * CHUNK + 1001, 500_000
    drawn = np.unpackbits(_draw("x", count, size, 7), count=size, bitorder="little")
    assert drawn.sum() == count
    share = count / size
    for part in (drawn[:CHUNK], drawn[CHUNK : 2 * CHUNK], drawn[2 * CHUNK :]):
        assert abs(part.mean() - share) < 5 * np.sqrt(share * (1 - share) / len(part))


def test_a_mask_survives_its_files_and_damage_is_found(
    pair: tuple[Path, Path], pocket_layout: Layout, tmp_path: Path
) -> None:
    mask = mask_of("changed", pair, pocket_layout)
    write_mask(tmp_path, mask)
    again = read_mask(tmp_path / MASK_FILE)
    assert (again.sha256, again.counts, again.request) == (mask.sha256, mask.counts, mask.request)
    num_bytes = (tmp_path / "elements.safetensors").stat().st_size
    assert num_bytes < sum(mask.sizes.values()) / 8 + 300 * len(mask.bits)
    damaged = bytearray((tmp_path / "elements.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "elements.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match="it is damaged"):
        read_mask(tmp_path / MASK_FILE)


def test_pairs_that_give_no_mask_are_refused(
    pair: tuple[Path, Path], pocket_layout: Layout, tiny_prompts: Path, tmp_path: Path
) -> None:
    start = pair[0]
    with pytest.raises(ValueError, match="none differs between the two checkpoints"):
        mask_of("changed", (start, start), pocket_layout)
    with pytest.raises(ValueError, match="expected changed, unchanged or random:SEED"):
        FreezeArguments(train_elements=["random", "a", "b"])
    with pytest.raises(ValueError, match="has 2 words"):
        FreezeArguments(train_elements=["changed", "a"])
    cut = Path(shutil.copytree(start, tmp_path / "cut"))
    tensors = read_tensors(cut)
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    write_tensors(cut, {**tensors, name: tensors[name][:-1].contiguous()})
    with pytest.raises(ValueError, match="has the shape"):
        mask_of("changed", (start, cut), pocket_layout)
    command = flags(start, tiny_prompts, tmp_path / "run", use_peft=True)
    with pytest.raises(ValueError, match="use use_peft: false"):
        main([*command, "--train_elements", "changed", *map(str, pair)])
    assert not (tmp_path / "run").exists()


def test_arms_with_a_mask_need_full() -> None:
    partition = make_partition(num_layers=6)
    arms = parse_arms(["full", "elements-changed", "elements-unchanged", "elements-random-3"], partition)
    assert [arm.elements for arm in arms] == ["", "changed", "unchanged", "random:3"]
    with pytest.raises(ValueError, match="needs the arm full"):
        parse_arms(["elements-changed"], partition)


def test_an_arm_with_a_mask_waits_for_full_of_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "configs/pocket/necessity.yaml", "--plan_json", "true", "--seeds", "0", "1"]
    necessity([*config, "--arms", "elements-random-3", "full"])
    plan = json.loads(capsys.readouterr().out)
    jobs = {job["name"]: job for job in plan["jobs"]}
    for seed in (0, 1):
        job = jobs[f"elements-random-3-seed{seed}"]
        assert f"full-seed{seed}" in job["needs"]
        first = job["argv"].index("--train_elements") + 1
        end = f"{plan['output_dir']}/arms/full-seed{seed}/final"
        assert job["argv"][first : first + 3] == ["random:3", plan["checkpoints"]["sft"], end]


def assert_elements(start: Checkpoint, directory: Path, layout: Layout) -> None:
    """Compares all saved checkpoints with the start, without the code that the run proves itself with."""
    words = json.loads((directory / MASK_FILE).read_text())["train_elements"]
    pair = (Path(words[1]), Path(words[2]))
    saved = [*sorted((directory / "checkpoints").glob("checkpoint-*")), directory / "final"]
    assert len(saved) == 3
    moved = 0
    for path in saved:
        checkpoint = open_checkpoint(path)
        for name in layout.parameters:
            dtype = start.tensors[name].dtype
            width = f"u{DTYPES[dtype][1]}"
            before = np.frombuffer(start.data(name), width)
            after = np.frombuffer(cast_bytes(checkpoint, name, dtype), width)
            frozen = expected_frozen(pair, name)
            assert (before[frozen] == after[frozen]).all(), (path, name)
            moved += int((before[~frozen] != after[~frozen]).sum())
    assert moved > 0.2 * len(saved) * json.loads((directory / MASK_FILE).read_text())["num_trained_elements"]


@pytest.mark.slow
def test_a_run_trains_the_mask_alone_and_verify_agrees(
    pair: tuple[Path, Path],
    pocket_layout: Layout,
    tiny_prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start, end = pair
    command = flags(start, tiny_prompts, tmp_path / "run", freeze="vision", **HOSTILE)
    main([*command, "--train_elements", "changed", str(start), str(end)])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "freeze_report.json").read_text())
    own = report["elements"]
    assert own["num_trained_elements"] < 0.4 * own["num_elements_in_optimizer"]
    assert own["num_elements_in_optimizer"] == report["engine"][0]["num_state_elements"]
    assert f"{own['num_elements_in_optimizer']:,} elements each" in printed and "frozen elements of the" in printed
    mask = read_mask(tmp_path / "run" / MASK_FILE)
    first, final = open_checkpoint(start), open_checkpoint(tmp_path / "run" / "final")
    for name in mask.counts:
        frozen = expected_frozen(pair, name)
        before, after = (np.frombuffer(one.data(name), "u4") for one in (first, final))
        assert (before[frozen] == after[frozen]).all(), name
    run = tmp_path / "run"
    pages = ["--start", str(start), "--end", str(run / "final"), "--elements", str(run / MASK_FILE)]
    verify(pages)
    verify([*pages, "--frozen", "vision"])
    assert "elements that the mask freezes are bit-identical" in capsys.readouterr().out
    tensors = read_tensors(tmp_path / "run" / "final")
    tensors = {name: own + 1e-3 for name, own in tensors.items()}
    write_tensors(tmp_path / "run" / "final", tensors)
    with pytest.raises(SystemExit) as exit_of:
        verify(pages)
    assert exit_of.value.code == 1 and "elements that should be frozen changed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["_decay_trained", "mask_gradients"])
def test_a_mask_that_does_not_hold_fails_the_run(
    pair: tuple[Path, Path], tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without either half of the mechanism, the moments or the first saved checkpoint show it."""
    if broken == "_decay_trained":
        monkeypatch.setattr(masked.MaskedElements, broken, lambda *_: None)
        monkeypatch.setattr(masked.MaskedElements, "_give_back", lambda *_: None)
        expected = "frozen tensors changed, the first is .* frozen elements changed"
    else:
        monkeypatch.setattr("train.running.stage.mask_gradients", lambda *_: None)
        expected = "elements have a moment after the first step"
    command = flags(pair[0], tiny_prompts, tmp_path / "run", **HOSTILE)
    with pytest.raises(RuntimeError, match=expected):
        main([*command, "--train_elements", "changed", *map(str, pair)])
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.slow
def test_a_mask_of_every_element_trains_as_no_mask_does(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    """The weight decay of trained elements is AdamW's own, to the bit."""
    end = Path(shutil.copytree(pocket_checkpoint, tmp_path / "end"))
    write_tensors(end, {name: own + 1.0 + own.abs() for name, own in read_tensors(end).items()})
    settings = {**HOSTILE, "max_steps": 2, "save_strategy": "no"}
    main(flags(pocket_checkpoint, tiny_prompts, tmp_path / "plain", **settings))
    command = flags(pocket_checkpoint, tiny_prompts, tmp_path / "masked", **settings)
    main([*command, "--train_elements", "changed", str(pocket_checkpoint), str(end)])
    plain, whole = (read_tensors(tmp_path / name / "final") for name in ("plain", "masked"))
    for name, own in plain.items():
        assert torch.equal(own, whole[name]), name


CASES = [
    Case(mode=mode, arm="elements", precision=precision, checkpointing=checkpointing, run=run)
    for mode, precision, checkpointing, run in (
        ("DDP", "fp32", "off", "resumed"),
        ("ZeRO-2", "bf16", "non-reentrant", "resumed"),
        ("ZeRO-3", "bf16", "off", "resumed"),
        ("ZeRO-3, offload", "fp32", "non-reentrant", "one run"),
    )
]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_frozen_elements_are_bit_identical_in_every_engine(tmp_path: Path) -> None:
    """GRPO with weight decay; the run itself also compares the fp32 masters with the start."""
    prepare(tmp_path)
    for start in ("start", "start-bf16"):
        write_changed(tmp_path / start, tmp_path / f"{start}-changed")
    launch(CASES, tmp_path, "cpu")
    for case in CASES:
        bf16 = case.precision == "bf16"
        start = open_checkpoint(tmp_path / ("start-bf16" if bf16 else "start"))
        assert_elements(start, tmp_path / "runs" / case.name, layout_of(start.directory))
