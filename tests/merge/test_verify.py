"""A written splice checked against its recipe, its record and its donors: whole, damaged, moved."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merge.splice import main as splice
from merge.verify import main
from models.checkpoint import WEIGHTS_FILE, open_checkpoint
from tests.merge.donors import Donors, respell
from tracking.command import REPOSITORY_ROOT

UP = "model.layers.5.mlp.up_proj.weight"
"""A tensor of `rl`, as the splice spells it."""


@pytest.fixture
def written(donors: Donors, tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A splice in:rl:rl and its donors, all of them copies."""
    paths = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in donors.paths.items()}
    flags = [word for name, path in paths.items() for word in ("--donor", f"{name}={path}")]
    splice(["--pattern", "in:rl:rl", "--rest", "in", *flags, "--output-dir", str(tmp_path / "run")])
    return tmp_path / "run" / "checkpoint", paths


def breaches(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What verifying prints for a splice that does not hold."""
    capsys.readouterr()
    with pytest.raises(RuntimeError, match="BREACH"):
        main([str(path), *arguments])
    return [line.removeprefix("breach: ") for line in capsys.readouterr().out.splitlines()]


def flip_bit(directory: Path, name: str) -> None:
    """Flips the lowest bit of a tensor's last element."""
    stored = next(stored for stored in open_checkpoint(directory).tensors.values() if stored.name.endswith(name))
    with stored.file.open("r+b") as file:
        file.seek(stored.offset + stored.num_bytes - 4)
        (byte,) = file.read(1)
        file.seek(stored.offset + stored.num_bytes - 4)
        file.write(bytes([byte ^ 1]))


def edit_record(checkpoint: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "splice.json"
    description = json.loads(path.read_text())
    edit(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("of_run", [True, False])
def test_whole_splice_is_proved(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str], of_run: bool
) -> None:
    checkpoint, _ = written
    main([str(checkpoint.parent if of_run else checkpoint)])
    number = len(open_checkpoint(checkpoint).tensors)
    assert f"proof: {number} tensors" in capsys.readouterr().out


def test_packed_anew_and_blended_splices_are_proved(donors: Donors, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"donors: {{in: {donors.paths['in']}, rl: {donors.paths['rl']}}}\n"
        "blocks: {early: in, mid: {start: in, end: rl, alpha: 0.5}, late: {start: in, end: rl, alpha: 0}}\n"
        "rest: {vision: in, projector: in, embed: {start: in, end: rl, alpha: -0.25}, norm: in}\n"
    )
    splice(["--recipe", str(recipe), "--max-shard-size", "100KB", "--output-dir", str(tmp_path / "run")])
    main([str(tmp_path / "run")])
    flip_bit(tmp_path / "run" / "checkpoint", "layers.3.mlp.up_proj.weight")
    with pytest.raises(RuntimeError, match="BREACH: 2 in"):
        main([str(tmp_path / "run")])


def test_flipped_bit_in_the_splice_is_found(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = written
    flip_bit(checkpoint, "layers.5.mlp.up_proj.weight")
    name = "model.language_model.layers.5.mlp.up_proj.weight"
    assert breaches(checkpoint, capsys) == [
        f"{name}: its bytes are not those splice.json records", f"{name}: its bytes are not those of rl"
    ]  # fmt: skip


def test_flipped_bit_in_a_donor_is_found_where_it_owns_the_tensor(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, paths = written
    flip_bit(paths["rl"], "layers.0.mlp.up_proj.weight")
    main([str(checkpoint)])
    flip_bit(paths["rl"], "layers.5.mlp.up_proj.weight")
    name = "model.language_model.layers.5.mlp.up_proj.weight"
    assert breaches(checkpoint, capsys) == [f"{name}: its bytes are not those of rl"]


def test_swapped_owner_is_found_in_the_record_and_in_the_recipe(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = written
    edit_record(checkpoint, lambda description: description["tensors"][UP].update(owner="in"))
    assert breaches(checkpoint, capsys) == [
        "model.language_model.layers.5.mlp.up_proj.weight: splice.json says owner 'in', the recipe says 'rl'"
    ]
    edit_record(checkpoint, lambda description: description["tensors"][UP].update(owner="rl"))
    main([str(checkpoint)])
    edit_record(checkpoint, lambda description: description["recipe"]["blocks"].update(late="in"))
    found = breaches(checkpoint, capsys)
    assert len(found) == 10 and all(".layers.4." in line for line in found)


def test_tensor_of_the_wrong_donor_is_found(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, paths = written
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    tensors[UP] = load_file(paths["in"] / WEIGHTS_FILE)[UP]
    save_file(tensors, checkpoint / WEIGHTS_FILE, metadata={"format": "pt"})
    assert [line.split(": ")[1] for line in breaches(checkpoint, capsys)] == [
        "its bytes are not those splice.json records", "its bytes are not those of rl"
    ]  # fmt: skip


def test_extra_and_missing_tensors_are_found(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = written
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    extra = UP.replace("up_proj", "upper_proj")
    save_file({**tensors, extra: tensors[UP].clone()}, checkpoint / WEIGHTS_FILE, metadata={"format": "pt"})
    assert "model.language_model.layers.5.mlp.upper_proj.weight: extra, the recipe has no such tensor" in breaches(
        checkpoint, capsys
    )
    kept = {name: tensor for name, tensor in tensors.items() if name != UP}
    save_file(kept, checkpoint / WEIGHTS_FILE, metadata={"format": "pt"})
    found = breaches(checkpoint, capsys)
    assert found == ["model.language_model.layers.5.mlp.up_proj.weight: missing", f"{UP}: recorded, and in no file"]


def test_changed_missing_and_extra_files_beside_the_weights_are_found(
    written: tuple[Path, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, paths = written
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + "\n")
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "added_tokens.json").write_text("{}")
    (paths["in"] / "generation_config.json").write_text("{}")
    (checkpoint / "further.safetensors").write_bytes(b"")
    assert breaches(checkpoint, capsys) == [
        "config.json: not the file splice.json records",
        "config.json: not the file of in",
        "generation_config.json: not the file of in",
        "tokenizer_config.json: missing, in has it",
        "added_tokens.json: extra, splice.json does not list it",
        "further.safetensors: extra weights, which belong to no splice",
    ]


def test_splice_that_cannot_be_opened_is_a_breach(written: tuple[Path, dict[str, Path]]) -> None:
    checkpoint, _ = written
    content = (checkpoint / WEIGHTS_FILE).read_bytes()
    (checkpoint / WEIGHTS_FILE).write_bytes(content[:-1])
    with pytest.raises(RuntimeError, match=r"BREACH: the splice cannot be opened: .* truncated"):
        main([str(checkpoint)])


def test_donor_that_moved_and_was_respelt_is_said(
    written: tuple[Path, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, paths = written
    elsewhere = respell(paths["rl"], tmp_path / "elsewhere", num_shards=2)
    shutil.rmtree(paths["rl"])
    with pytest.raises(ValueError, match=r"checkpoint .*/rl does not exist.*pass --donor NAME=CHECKPOINT"):
        main([str(checkpoint)])
    main([str(checkpoint), "--donor", f"rl={elsewhere}"])
    assert len(breaches(checkpoint, capsys, "--donor", f"rl={paths['in']}")) == 10
    with pytest.raises(ValueError, match=r"--donor names 'RL', which is not a donor of this splice"):
        main([str(checkpoint), "--donor", f"RL={elsewhere}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "splice.json does not exist; expected a folder that merge.splice wrote"),
        ("{", "splice.json is not readable as JSON"),
        ("[]", "has the format version None; expected 1"),
        ('{"format_version": 2}', "has the format version 2; expected 1"),
        ('{"format_version": 1}', "has no recipe and tensors"),
        ('{"format_version": 1, "recipe": {}, "tensors": {}}', "donors holds nothing"),
    ],
)
def test_what_is_no_splice_is_a_mistake(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "splice.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path)])


@pytest.mark.slow
def test_exit_status_tells_a_breach_from_a_mistake(written: tuple[Path, dict[str, Path]]) -> None:
    checkpoint, paths = written

    def verify(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "merge.verify", str(checkpoint), *arguments]
        done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert verify() == (0, "")
    flip_bit(checkpoint, "layers.5.mlp.up_proj.weight")
    status, said = verify()
    assert status == 1 and said.startswith("error: BREACH: 2 in ")
    shutil.rmtree(paths["in"])
    status, said = verify()
    assert status == 2 and said.startswith("error: checkpoint ") and len(said.splitlines()) == 1
