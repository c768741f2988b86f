import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from models.checkpoint import (
    COMPANION_SUFFIXES,
    INDEX_FILE,
    WEIGHTS_FILE,
    cast_bytes,
    check_same_tensors,
    open_checkpoint,
    write_like,
    write_safetensors,
)

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def load(directory: Path, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(directory, **options)
    return model


def library_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor by its name on disk, as the reference implementation reads it."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return tensors


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def copy_companions(start: Path, directory: Path) -> Path:
    shutil.copytree(start, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


def copy_with(start: Path, directory: Path, changes: dict[str, torch.Tensor]) -> Path:
    """Copies a checkpoint of one file, with some tensors (by name on disk) replaced or added."""
    shutil.copytree(start, directory)
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({**tensors, **changes}, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def checkpoints(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pocket weights in every way they may stand on disk."""
    root = tmp_path_factory.mktemp("checkpoints")
    model = load(pocket_checkpoint)
    in_memory = copy_companions(pocket_checkpoint, root / "in-memory")
    save_file(dict(model.named_parameters()), in_memory / WEIGHTS_FILE, metadata={"format": "pt"})
    model.save_pretrained(root / "sharded", max_shard_size="1MB")
    model.to(torch.bfloat16).save_pretrained(copy_companions(pocket_checkpoint, root / "bf16"), max_shard_size="1MB")
    return {"fp32": pocket_checkpoint} | {name: root / name for name in ("in-memory", "sharded", "bf16")}


def test_fixture_covers_shards_dtypes_and_spellings(checkpoints: dict[str, Path]) -> None:
    assert len(list(checkpoints["sharded"].glob("*.safetensors"))) > 2
    assert {tensor.dtype for tensor in library_tensors(checkpoints["bf16"]).values()} == {torch.bfloat16}
    assert set(library_tensors(checkpoints["in-memory"])) != set(library_tensors(checkpoints["fp32"]))


@pytest.mark.parametrize("kind", ["fp32", "in-memory", "sharded", "bf16"])
def test_reader_equals_the_safetensors_library(checkpoints: dict[str, Path], kind: str) -> None:
    checkpoint = open_checkpoint(checkpoints[kind])
    expected = library_tensors(checkpoints[kind])
    assert {stored.name_on_disk for stored in checkpoint.tensors.values()} == set(expected)
    for name, stored in checkpoint.tensors.items():
        reference = expected[stored.name_on_disk]
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == reference.dtype and tensor.shape == reference.shape == torch.Size(stored.shape)
        assert bytes(checkpoint.data(name)) == raw_bytes(reference) == raw_bytes(tensor)
        assert checkpoint.sha256(name) == hashlib.sha256(raw_bytes(reference)).hexdigest()


@pytest.mark.parametrize("kind", ["fp32", "in-memory", "sharded", "bf16"])
def test_every_spelling_gives_the_models_own_names(checkpoints: dict[str, Path], kind: str) -> None:
    names = {name for name, _ in load(checkpoints["fp32"]).named_parameters()}
    assert set(open_checkpoint(checkpoints[kind]).tensors) == names


def test_names_published_on_the_hub_give_the_models_own_names(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    hub = copy_companions(checkpoints["fp32"], tmp_path / "hub")
    tensors = library_tensors(checkpoints["in-memory"])
    spelt = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in tensors.items()
    }
    assert any(name.startswith("visual.blocks.0.") for name in spelt) and "model.norm.weight" in spelt
    save_file(spelt, hub / WEIGHTS_FILE, metadata={"format": "pt"})
    checkpoint = open_checkpoint(hub)
    assert set(checkpoint.tensors) == set(tensors)
    assert all(checkpoint.sha256(name) == hashlib.sha256(raw_bytes(tensors[name])).hexdigest() for name in tensors)


def test_changing_a_tensor_that_was_read_leaves_the_file(checkpoints: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(checkpoints["fp32"])
    before = checkpoint.sha256(EMBED)
    checkpoint.tensor(EMBED).zero_()
    assert checkpoint.sha256(EMBED) == before == open_checkpoint(checkpoints["fp32"]).sha256(EMBED)


def test_scalar_and_empty_tensors_are_read(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, {"model.norm.weight": torch.tensor(2.5), "model.x": torch.empty(0, 3)})
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensor("model.language_model.norm.weight") == 2.5
    assert checkpoint.tensor("model.language_model.x").shape == (0, 3)
    assert checkpoint.sha256("model.language_model.x") == hashlib.sha256(b"").hexdigest()


def test_what_is_written_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6, dtype=torch.int64).reshape(2, 3), "a": torch.tensor(1.5, dtype=torch.bfloat16)}
    write_safetensors(
        tmp_path / WEIGHTS_FILE, [("b", "I64", (2, 3)), ("a", "BF16", ())], lambda name: raw_bytes(tensors[name])
    )
    read = load_file(tmp_path / WEIGHTS_FILE)
    assert set(read) == {"a", "b"} and all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("kind", ["fp32", "in-memory", "bf16"])
def test_unchanged_checkpoint_is_written_as_it_was(checkpoints: dict[str, Path], tmp_path: Path, kind: str) -> None:
    start = open_checkpoint(checkpoints[kind])
    write_like(tmp_path, start=start, weights=open_checkpoint(checkpoints[kind]))
    before, after = library_tensors(start.directory), library_tensors(tmp_path)
    assert set(after) == set(before)
    assert all(raw_bytes(after[name]) == raw_bytes(before[name]) for name in before)
    assert {name: stored.file.name for name, stored in open_checkpoint(tmp_path).tensors.items()} == {
        name: stored.file.name for name, stored in start.tensors.items()
    }
    companions = [file for file in start.directory.iterdir() if file.suffix in COMPANION_SUFFIXES]
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= {file.name for file in companions}
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in companions)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in start.directory.iterdir()}


@pytest.mark.parametrize("kind", ["fp32", "in-memory", "bf16"])
def test_written_checkpoint_loads_in_transformers(checkpoints: dict[str, Path], tmp_path: Path, kind: str) -> None:
    start = open_checkpoint(checkpoints[kind])
    write_like(tmp_path, start=start, weights=open_checkpoint(checkpoints[kind]))
    before, after = (load(path, dtype="auto").state_dict() for path in (checkpoints[kind], tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before) and set(before) == set(after)


def test_trained_weights_take_the_start_checkpoints_dtypes_spelling_and_shards(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    start, trained = open_checkpoint(checkpoints["bf16"]), open_checkpoint(checkpoints["in-memory"])
    write_like(tmp_path, start=start, weights=trained)
    written = open_checkpoint(tmp_path)
    for name, stored in written.tensors.items():
        like = start.tensors[name]
        assert (stored.name_on_disk, stored.file.name) == (like.name_on_disk, like.file.name)
        assert (stored.dtype, stored.shape) == ("BF16", like.shape)
        assert raw_bytes(written.tensor(name)) == raw_bytes(trained.tensor(name).to(torch.bfloat16))


def test_cast_rounds_like_torch_at_the_edges(tmp_path: Path) -> None:
    ties = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)]  # half-way between two bf16 neighbours
    values = torch.tensor([*ties, 3.4e38, float("inf"), float("-inf"), float("nan"), -0.0, 1e-40, 1e-45, 1 / 3])
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, {"model.norm.weight": values}))
    name = "model.language_model.norm.weight"
    for stored, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F64", torch.float64)):
        assert bytes(cast_bytes(checkpoint, name, stored)) == raw_bytes(values.to(dtype))
    assert bytes(cast_bytes(checkpoint, name, "F32")) == raw_bytes(values)


def test_fingerprint_tells_a_retrained_tensor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    start = checkpoints["fp32"]
    tensors = load_file(start / WEIGHTS_FILE)
    fingerprint = open_checkpoint(start).fingerprint()
    assert open_checkpoint(copy_with(start, tmp_path / "same", {})).fingerprint() == fingerprint
    for number, name in enumerate(list(tensors)[::10]):
        changed = copy_with(start, tmp_path / str(number), {name: tensors[name] + 1e-3})
        assert open_checkpoint(changed).fingerprint() != fingerprint, name


def test_tied_duplicate_of_equal_bytes_is_no_extra_tensor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    start = open_checkpoint(checkpoints["in-memory"])
    embed = load_file(start.directory / WEIGHTS_FILE)[EMBED]
    trained = open_checkpoint(copy_with(start.directory, tmp_path / "duplicate", {HEAD: embed.clone()}))
    assert HEAD in trained.tensors
    check_same_tensors(start, trained)
    (tmp_path / "final").mkdir()
    write_like(tmp_path / "final", start=start, weights=trained)
    assert set(open_checkpoint(tmp_path / "final").tensors) == set(start.tensors)


def test_tied_duplicate_that_only_the_start_stores_is_written_again(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    trained = open_checkpoint(checkpoints["in-memory"])
    embed = load_file(trained.directory / WEIGHTS_FILE)[EMBED]
    start = open_checkpoint(copy_with(trained.directory, tmp_path / "start", {HEAD: embed.clone()}))
    check_same_tensors(start, trained)
    (tmp_path / "final").mkdir()
    write_like(tmp_path / "final", start=start, weights=trained)
    final = open_checkpoint(tmp_path / "final")
    assert set(final.tensors) == set(start.tensors)
    assert final.data(HEAD) == trained.data("model.language_model.embed_tokens.weight")


def test_head_that_differs_from_the_tied_embedding_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    start = open_checkpoint(checkpoints["in-memory"])
    head = load_file(start.directory / WEIGHTS_FILE)[EMBED].clone()
    head[0, 0] += 1
    trained = open_checkpoint(copy_with(start.directory, tmp_path / "differing", {HEAD: head}))
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match=f"has '{HEAD}', which .* has not"):
        write_like(tmp_path / "final", start=start, weights=trained)
    assert not list((tmp_path / "final").iterdir())


def test_checkpoints_of_other_tensors_or_shapes_are_refused_by_name(tmp_path: Path) -> None:
    name, canonical = "model.norm.weight", "model.language_model.norm.weight"
    other = "model.layers.0.mlp.up_proj.weight"
    start = open_checkpoint(make_checkpoint(tmp_path / "start", {name: torch.ones(4)}))
    longer = open_checkpoint(make_checkpoint(tmp_path / "longer", {name: torch.ones(4), other: torch.ones(2)}))
    wider = open_checkpoint(make_checkpoint(tmp_path / "wider", {name: torch.ones(5)}))
    with pytest.raises(ValueError, match=r"start: lacks 'model\.language_model\.layers\.0\.mlp\.up_proj\.weight'"):
        check_same_tensors(longer, start)
    with pytest.raises(ValueError, match=r"longer: has 'model\.language_model\.layers\.0\.mlp\.up_proj\.weight'"):
        check_same_tensors(start, longer)
    with pytest.raises(ValueError, match=rf"wider: '{canonical}' has the shape \[5\]; expected \[4\]"):
        check_same_tensors(start, wider)


# Damaged checkpoints: each kind of damage done to a whole one, and what the message must name.

UP, DOWN, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def make_checkpoint(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    save_file(tensors, directory / WEIGHTS_FILE)
    return directory


def make_sharded(directory: Path) -> dict[str, str]:
    """Turns the whole checkpoint into two shards and returns the index's weight_map."""
    tensors = load_file(directory / WEIGHTS_FILE)
    (directory / WEIGHTS_FILE).unlink()
    placed = {UP: SHARDS[0], DOWN: SHARDS[1], NORM: SHARDS[1]}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in tensors if placed[name] == shard}, directory / shard)
    write_index(directory, placed)
    return placed


def write_index(directory: Path, placed: dict[str, str]) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def edit_header(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of the one weights file, leaving the tensors' bytes."""
    path = directory / WEIGHTS_FILE
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    edit(header)
    replace_header(directory, json.dumps(header).encode())


def replace_header(directory: Path, header: bytes) -> None:
    path = directory / WEIGHTS_FILE
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def missing_folder(directory: Path) -> None:
    shutil.rmtree(directory)


def missing_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def config_not_json(directory: Path) -> None:
    (directory / "config.json").write_text("model_type: qwen2_5_vl")


def config_of_bytes(directory: Path) -> None:
    (directory / "config.json").write_bytes(b"\xff\xfe{}")


def config_is_a_list(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def no_model_type(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def missing_weights(directory: Path) -> None:
    (directory / WEIGHTS_FILE).unlink()


def pickled_weights_only(directory: Path) -> None:
    (directory / WEIGHTS_FILE).rename(directory / "pytorch_model.bin")


def empty_file(directory: Path) -> None:
    (directory / WEIGHTS_FILE).write_bytes(b"")


def truncated_tensors(directory: Path) -> None:
    path = directory / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1])


def truncated_header(directory: Path) -> None:
    path = directory / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:40])


def header_length_too_large(directory: Path) -> None:
    path = directory / WEIGHTS_FILE
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


def header_not_json(directory: Path) -> None:
    replace_header(directory, b'{"a": ')


def header_of_bytes(directory: Path) -> None:
    replace_header(directory, b"\xff" * 64)


def header_is_a_list(directory: Path) -> None:
    replace_header(directory, b"[1, 2]")


def git_lfs_pointer(directory: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4997750760\n"
    (directory / WEIGHTS_FILE).write_text(pointer)


def wrong_offsets(directory: Path) -> None:
    edit_header(directory, lambda header: header[UP].update(data_offsets=[28, 52]))


def offsets_of_another_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[UP].update(shape=[2, 4]))


def overlapping_tensors(directory: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        header[UP]["data_offsets"] = list(header[DOWN]["data_offsets"])

    edit_header(directory, overlap)


def negative_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[UP].update(shape=[-2, 3]))


def offsets_of_text(directory: Path) -> None:
    edit_header(directory, lambda header: [entry.update(data_offsets=["0", "24"]) for entry in header.values()])


def unknown_dtype(directory: Path) -> None:
    edit_header(directory, lambda header: header[UP].update(dtype="F8_E4M3"))


def trailing_bytes(directory: Path) -> None:
    with (directory / WEIGHTS_FILE).open("ab") as file:
        file.write(b"\0" * 8)


def index_not_json(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX_FILE).write_text('{"weight_map": {')


def index_without_weight_map(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX_FILE).write_text('{"metadata": {}}')


def index_of_numbers(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX_FILE).write_text('{"weight_map": {"model.norm.weight": 3}}')


def stale_file_beside_shards(directory: Path) -> None:
    content = (directory / WEIGHTS_FILE).read_bytes()
    make_sharded(directory)
    (directory / WEIGHTS_FILE).write_bytes(content)


def index_names_a_missing_file(directory: Path) -> None:
    make_sharded(directory)
    (directory / SHARDS[1]).unlink()


def index_names_a_missing_tensor(directory: Path) -> None:
    write_index(directory, {**make_sharded(directory), "model.layers.1.mlp.up_proj.weight": SHARDS[0]})


def index_places_a_tensor_elsewhere(directory: Path) -> None:
    write_index(directory, {**make_sharded(directory), UP: SHARDS[1], NORM: SHARDS[0]})


def index_lacks_a_tensor(directory: Path) -> None:
    placed = make_sharded(directory)
    write_index(directory, {name: file for name, file in placed.items() if name != NORM})


def truncated_shard(directory: Path) -> None:
    make_sharded(directory)
    path = directory / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])


def same_tensor_in_two_spellings(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({**tensors, "model.language_model.norm.weight": torch.ones(4)}, directory / WEIGHTS_FILE)


def same_tensor_in_two_shards(directory: Path) -> None:
    placed = make_sharded(directory)
    canonical = "model.language_model.norm.weight"
    save_file({UP: torch.ones(2, 3), canonical: torch.ones(4)}, directory / SHARDS[0])
    write_index(directory, {**placed, canonical: SHARDS[0]})


CONFIG = "config.json"


@pytest.mark.parametrize(
    ("damage", "names", "reason"),
    [
        (missing_folder, (), "does not exist; expected a folder"),
        (missing_config, (CONFIG,), "does not exist"),
        (config_not_json, (CONFIG,), "not readable as JSON"),
        (config_of_bytes, (CONFIG,), "not readable as JSON"),
        (config_is_a_list, (CONFIG,), "expected a JSON object"),
        (no_model_type, (CONFIG,), "names no model_type"),
        (missing_weights, (WEIGHTS_FILE, INDEX_FILE), "does not exist"),
        (pickled_weights_only, ("pytorch_model.bin",), "pickled weights .* can run code"),
        (empty_file, (WEIGHTS_FILE,), "truncated"),
        (truncated_tensors, (WEIGHTS_FILE,), "truncated"),
        (truncated_header, (WEIGHTS_FILE,), "truncated"),
        (header_length_too_large, (WEIGHTS_FILE,), "the header claims 9223372036854775808 bytes"),
        (header_not_json, (WEIGHTS_FILE,), "header is not readable as JSON"),
        (header_of_bytes, (WEIGHTS_FILE,), "header is not readable as JSON"),
        (header_is_a_list, (WEIGHTS_FILE,), "expected a JSON object"),
        (git_lfs_pointer, (WEIGHTS_FILE,), "no safetensors file"),
        (wrong_offsets, (WEIGHTS_FILE, UP), "claims bytes 28 to 52; expected 24 to 48"),
        (offsets_of_another_shape, (WEIGHTS_FILE, UP), r"for F32 \[2, 4\]"),
        (overlapping_tensors, (WEIGHTS_FILE, UP), "claims bytes"),
        (negative_shape, (WEIGHTS_FILE, UP), r"\[-2, 3\]"),
        (offsets_of_text, (WEIGHTS_FILE,), "tensor 'model"),
        (unknown_dtype, (WEIGHTS_FILE, UP), "dtype F8_E4M3; supported are"),
        (trailing_bytes, (WEIGHTS_FILE,), "its header describes"),
        (index_not_json, (INDEX_FILE,), "not readable as JSON"),
        (index_without_weight_map, (INDEX_FILE,), "holds no weight_map"),
        (index_of_numbers, (INDEX_FILE,), "holds no weight_map"),
        (stale_file_beside_shards, (WEIGHTS_FILE, INDEX_FILE), "holds both"),
        (index_names_a_missing_file, (INDEX_FILE, SHARDS[1]), "does not exist"),
        (index_names_a_missing_tensor, (INDEX_FILE, "model.layers.1.mlp.up_proj.weight"), "stands in no file"),
        (index_places_a_tensor_elsewhere, (INDEX_FILE, SHARDS[0], UP), f"places in {SHARDS[1]}"),
        (index_lacks_a_tensor, (INDEX_FILE, SHARDS[1], NORM), "which"),
        (truncated_shard, (SHARDS[1],), "truncated"),
        (same_tensor_in_two_spellings, (WEIGHTS_FILE, "model.language_model.norm.weight"), "stands twice"),
        (same_tensor_in_two_shards, (*SHARDS, "model.language_model.norm.weight"), "stands twice"),
    ],
)
def test_damaged_checkpoint_is_one_line_naming_file_and_tensor(
    tmp_path: Path, damage: Callable[[Path], None], names: tuple[str, ...], reason: str
) -> None:
    tensors = {UP: torch.ones(2, 3), DOWN: torch.ones(3, 2), NORM: torch.ones(4)}
    directory = make_checkpoint(tmp_path / "checkpoint", tensors)
    assert len(open_checkpoint(directory).tensors) == 3
    damage(directory)
    with pytest.raises(ValueError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert type(caught.value) is ValueError and "\n" not in message
    assert str(directory) in message and all(name in message for name in names)
    assert re.search(reason, message)


@pytest.mark.parametrize("model_type", ["llama", None, 3, ["qwen2_vl"]])
def test_checkpoint_of_an_unsupported_family_names_the_supported_ones(tmp_path: Path, model_type: Any) -> None:
    directory = make_checkpoint(tmp_path, {NORM: torch.ones(4)})
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match="is not supported; supported are qwen2, qwen2_5_vl, qwen2_vl, qwen3_vl"):
        open_checkpoint(directory)


def test_undamaged_shards_open(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, {UP: torch.ones(2, 3), DOWN: torch.ones(3, 2), NORM: torch.ones(4)})
    make_sharded(directory)
    assert {stored.file.name for stored in open_checkpoint(directory).tensors.values()} == set(SHARDS)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"dtype": "F32", "shape": [2, 3]},
        {"dtype": "F32", "data_offsets": [24, 48]},
        {"shape": [2, 3], "data_offsets": [24, 48]},
        {"dtype": ["F32"], "shape": [2, 3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [2.0, 3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [True, 6], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": 6, "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": "23", "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24.0, 48.0]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48, 72]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": None},
    ],
)
def test_malformed_header_entry_is_one_line_naming_file_and_tensor(tmp_path: Path, entry: Any) -> None:
    directory = make_checkpoint(tmp_path, {UP: torch.ones(2, 3), DOWN: torch.ones(3, 2), NORM: torch.ones(4)})
    edit_header(directory, lambda header: header.update({UP: entry}))
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE}: tensor '{UP}' has the header entry") as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
