import hashlib
import json
import mmap
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from models.checkpoint import (
    COMPANION_SUFFIXES,
    WEIGHTS_FILE,
    cast_bytes,
    check_same_tensors,
    open_checkpoint,
    stored_layout,
    write_like,
)
from models.families import FAMILIES
from models.layout import layout_of
from models.shards import write_safetensors
from tests.models.damage import DAMAGES, SHARDS, make_sharded

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
    directory = make_checkpoint(tmp_path, {"model.norm.weight": torch.tensor(2.5), "model.norm.x": torch.empty(0, 3)})
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensor("model.language_model.norm.weight") == 2.5
    assert checkpoint.tensor("model.language_model.norm.x").shape == (0, 3)
    assert checkpoint.sha256("model.language_model.norm.x") == hashlib.sha256(b"").hexdigest()


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
    with pytest.raises(ValueError, match=f"has '{HEAD}', which .* lacks"):
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


def make_checkpoint(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    save_file(tensors, directory / WEIGHTS_FILE)
    return directory


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_one_line_naming_file_and_tensor(
    pocket_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    open_checkpoint(directory)
    damage(directory)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(directory)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)
    assert str(directory) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("model_type", ["llama", None, 3, ["qwen2_vl"]])
def test_checkpoint_of_an_unsupported_family_names_the_supported_ones(tmp_path: Path, model_type: Any) -> None:
    directory = make_checkpoint(tmp_path, {"model.norm.weight": torch.ones(4)})
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"is not supported; supported are {', '.join(sorted(FAMILIES))}"):
        open_checkpoint(directory)


def test_undamaged_shards_open(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    make_sharded(directory)
    assert {stored.file.name for stored in open_checkpoint(directory).tensors.values()} == set(SHARDS)


def test_weights_behind_links_open_as_the_hubs_cache_has_them(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "snapshots" / "0123"
    directory.mkdir(parents=True)
    for number, file in enumerate(sorted(pocket_checkpoint.iterdir())):
        (directory / file.name).symlink_to(shutil.copy(file, tmp_path / f"blob-{number}"))
    assert open_checkpoint(directory).fingerprint() == open_checkpoint(pocket_checkpoint).fingerprint()


def test_integer_tensors_beside_floating_ones_are_no_mixture(tmp_path: Path) -> None:
    tensors = {"model.norm.weight": torch.ones(4), "model.layers.0.mlp.steps": torch.arange(3)}
    assert len(open_checkpoint(make_checkpoint(tmp_path, tensors)).tensors) == 2


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float16), "float32"),
        ((torch.bfloat16, torch.float32), "float32"),
        ((torch.float32, torch.float64), "float64"),
    ],
)
def test_mixed_dtypes_name_one_that_holds_both(tmp_path: Path, dtypes: tuple[torch.dtype, ...], widest: str) -> None:
    tensors = {f"model.layers.{index}.mlp.up_proj.weight": torch.ones(2, dtype=d) for index, d in enumerate(dtypes)}
    with pytest.raises(ValueError, match=f"dtype='{widest}'"):
        open_checkpoint(make_checkpoint(tmp_path, tensors))


def test_the_way_out_of_mixed_dtypes_keeps_every_value(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    tensors = {
        name: tensor.bfloat16() if number % 2 else tensor
        for number, (name, tensor) in enumerate(load_file(directory / WEIGHTS_FILE).items())
    }
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    rounded = {str(parameter.dtype) for parameter in load(directory, dtype="auto").parameters()}
    assert rounded == {"torch.bfloat16"}  # what is refused here is what Transformers would do
    with pytest.raises(ValueError) as caught:
        open_checkpoint(directory)
    way_out = re.search(r"AutoModel\S+\.from_pretrained\(.*?\)(?=\.save_pretrained)", str(caught.value))
    assert way_out is not None
    eval(way_out[0], {"AutoModelForImageTextToText": AutoModelForImageTextToText}).save_pretrained(tmp_path / "one")
    shutil.copy(pocket_checkpoint / "tokenizer.json", tmp_path / "one")
    saved = open_checkpoint(tmp_path / "one")
    names = {stored.name_on_disk: name for name, stored in saved.tensors.items()}
    assert all(torch.equal(saved.tensor(names[name]), tensor.float()) for name, tensor in tensors.items())


def test_a_view_is_the_tensor_without_a_copy(checkpoints: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(checkpoints["bf16"])
    for name, stored in checkpoint.tensors.items():
        view = checkpoint.view(name)
        assert view.dtype == torch.bfloat16 and torch.equal(view.reshape(stored.shape), checkpoint.tensor(name))
        assert view.data_ptr() == checkpoint.view(name).data_ptr()


def test_a_view_of_an_odd_place_in_the_file_is_right(tmp_path: Path) -> None:
    values = {f"model.layers.{index}.mlp.x": torch.rand(3) for index in range(3)}
    directory = make_checkpoint(tmp_path, values)
    content = (directory / WEIGHTS_FILE).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].rstrip()
    header += b" " * (5 - len(header) % 4)
    assert (8 + len(header)) % 4 == 1
    (directory / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    checkpoint = open_checkpoint(directory)
    for stored in checkpoint.tensors.values():
        assert torch.equal(checkpoint.view(stored.name), values[stored.name_on_disk])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.slow
def test_memory_of_a_pass_is_that_of_one_tensor(tmp_path: Path) -> None:
    block = bytes(range(256)) * 2**18  # 64 MiB
    entries = [(f"model.layers.{index}.mlp.x", "BF16", (len(block) // 2,)) for index in range(6)]
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    write_safetensors(tmp_path / WEIGHTS_FILE, entries, lambda _: block)
    checkpoint = open_checkpoint(tmp_path)
    digest = hashlib.sha256(block).hexdigest()
    before, grown = resident_bytes(), 0
    for name in checkpoint.tensors:
        assert checkpoint.view(name)[::2048].sum(dtype=torch.float64) != 0
        grown = max(grown, resident_bytes() - before)
        checkpoint.release(name)
    assert 32 * 2**20 < grown < 128 * 2**20
    assert {checkpoint.sha256(name) for name in checkpoint.tensors} == {digest}
    assert resident_bytes() - before < 32 * 2**20
    assert bytes(checkpoint.data("model.layers.0.mlp.x")[-4:]) == block[-4:]  # still valid after its release


def test_a_layout_without_a_model_is_the_models_own(
    pocket_checkpoint: Path,
    qwen2_checkpoint: Path,
    qwen2_vl_checkpoint: Path,
    qwen3_vl_checkpoint: Path,
    internvl_checkpoint: Path,
) -> None:
    of_qwen = (pocket_checkpoint, qwen2_checkpoint, qwen2_vl_checkpoint, qwen3_vl_checkpoint)
    for directory in (*of_qwen, internvl_checkpoint):
        stored, built = stored_layout(open_checkpoint(directory)), layout_of(directory)
        assert {p.name: p for p in stored} == {p.name: p for p in built}
        assert (stored.tied, stored.num_layers, stored.num_vision_blocks) == (
            built.tied, built.num_layers, built.num_vision_blocks
        )  # fmt: skip
