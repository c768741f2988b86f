"""Ways to damage a checkpoint: name -> modification of an intact one, and the pattern of its one-line error.

Every function takes the folder of a loadable checkpoint of a tied VLM whose weights stand in `model.safetensors`, such
as a copy of the pocket checkpoint, in any spelling. `DAMAGES` are refused when the checkpoint is opened, `MISFITS` are
whole files that are not what `config.json` describes.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.families import FAMILIES

Damage = tuple[Callable[[Path], None], str]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
UP, DOWN, NORM, EMBED = (
    "layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight", "norm.weight", "embed_tokens.weight"
)  # fmt: skip


def on_disk(names: Iterable[str], end: str) -> str:
    """Returns the shortest name with this end: the decoder's, not the tower's."""
    return min((name for name in names if name.endswith(end) and "visual" not in name), key=len)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / WEIGHTS)


def write_tensors(directory: Path, tensors: dict[str, torch.Tensor], file: str = WEIGHTS) -> None:
    save_file(tensors, directory / file, metadata={"format": "pt"})


def read_header(directory: Path) -> dict[str, Any]:
    content = (directory / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    return header


def replace_header(directory: Path, header: bytes) -> None:
    """Puts another header before the same tensors."""
    path = directory / WEIGHTS
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def edit_entry(directory: Path, end: str, **values: Any) -> None:
    header = read_header(directory)
    header[on_disk(header, end)].update(values)
    replace_header(directory, json.dumps(header).encode())


def edit_config(directory: Path, **values: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_index(directory: Path, placed: dict[str, str]) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def make_sharded(directory: Path) -> dict[str, str]:
    """Turns the one file into two shards, all but the norm in the first, and returns the index's weight_map."""
    tensors = read_tensors(directory)
    (directory / WEIGHTS).unlink()
    last = on_disk(tensors, NORM)
    write_tensors(directory, {name: tensor for name, tensor in tensors.items() if name != last}, SHARDS[0])
    write_tensors(directory, {last: tensors[last]}, SHARDS[1])
    placed = {name: SHARDS[name == last] for name in tensors}
    write_index(directory, placed)
    return placed


def missing_folder(directory: Path) -> None:
    shutil.rmtree(directory)


def missing_config(directory: Path) -> None:
    (directory / CONFIG).unlink()


def config_not_json(directory: Path) -> None:
    (directory / CONFIG).write_text("model_type: qwen2_5_vl")


def config_of_bytes(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b"\xff\xfe{}")


def config_is_a_list(directory: Path) -> None:
    (directory / CONFIG).write_text("[]")


def config_says_it_twice(directory: Path) -> None:
    path = directory / CONFIG
    path.write_text(path.read_text().replace("{", '{"model_type": "qwen2_vl",', 1))


def no_model_type(directory: Path) -> None:
    (directory / CONFIG).write_text("{}")


def other_family(directory: Path) -> None:
    edit_config(directory, model_type="llava")


def quantised_config(directory: Path) -> None:
    edit_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})


def missing_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def weights_are_a_folder(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()


def link_to_nothing(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("../../blobs/0123")


def pickled_weights(directory: Path) -> None:
    torch.save(read_tensors(directory), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


def gguf_weights(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-Q4_K_M.gguf")


def deepspeed_state(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "global_step10").mkdir()
    (directory / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    (directory / "training_args.bin").touch()


def adapter_alone(directory: Path) -> None:
    (directory / CONFIG).unlink()
    (directory / WEIGHTS).rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "outputs/sft/final"}))


def adapter_beside_the_model(directory: Path) -> None:
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "outputs/sft/final"}))


def shards_without_index(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX).unlink()


def empty_file(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"")


def truncated_tensors(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def truncated_header(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:40])


def header_length_too_large(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


def header_not_json(directory: Path) -> None:
    replace_header(directory, b'{"a": ')


def header_of_bytes(directory: Path) -> None:
    replace_header(directory, b"\xff" * 64)


def header_is_a_list(directory: Path) -> None:
    replace_header(directory, b"[1, 2]")


def header_of_brackets(directory: Path) -> None:
    replace_header(directory, b"[" * 1_000_000)


def header_of_an_endless_number(directory: Path) -> None:
    replace_header(directory, b'{"a": ' + b"9" * 10_000 + b"}")


def metadata_of_numbers(directory: Path) -> None:
    replace_header(directory, json.dumps({**read_header(directory), "__metadata__": {"step": 3}}).encode())


def tensor_twice_in_a_header(directory: Path) -> None:
    header = read_header(directory)
    name = on_disk(header, UP)
    doubled = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    replace_header(directory, doubled.encode())


def git_lfs_pointer(directory: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4997750760\n"
    (directory / WEIGHTS).write_text(pointer)


def no_tensors(directory: Path) -> None:
    write_tensors(directory, {})


def wrong_offsets(directory: Path) -> None:
    header = read_header(directory)
    first, last = header[on_disk(header, UP)]["data_offsets"]
    edit_entry(directory, UP, data_offsets=[first + 4, last + 4])


def offsets_of_another_shape(directory: Path) -> None:
    edit_entry(directory, UP, shape=[2, 4])


def overlapping_tensors(directory: Path) -> None:
    header = read_header(directory)
    edit_entry(directory, UP, data_offsets=header[on_disk(header, DOWN)]["data_offsets"])


def negative_shape(directory: Path) -> None:
    edit_entry(directory, UP, shape=[-2, 3])


def shape_beyond_any_memory(directory: Path) -> None:
    edit_entry(directory, UP, shape=[2**62, 2**62])


def offsets_of_text(directory: Path) -> None:
    edit_entry(directory, UP, data_offsets=["0", "24"])


def quantised_tensor(directory: Path) -> None:
    edit_entry(directory, UP, dtype="F8_E4M3")


def trailing_bytes(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 8)


def mixed_dtypes(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, UP)
    other = torch.float32 if tensors[name].dtype != torch.float32 else torch.bfloat16
    write_tensors(directory, {**tensors, name: tensors[name].to(other)})


def names_of_a_wrapper(directory: Path) -> None:
    write_tensors(directory, {f"module.{name}": tensor for name, tensor in read_tensors(directory).items()})


def tensor_of_another_model(directory: Path) -> None:
    write_tensors(directory, {**read_tensors(directory), "score.weight": torch.ones(2, 3)})


def index_not_json(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX).write_text('{"weight_map": {')


def index_without_weight_map(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX).write_text('{"metadata": {}}')


def index_of_nothing(directory: Path) -> None:
    make_sharded(directory)
    write_index(directory, {})


def index_of_numbers(directory: Path) -> None:
    make_sharded(directory)
    (directory / INDEX).write_text('{"weight_map": {"model.norm.weight": 3}}')


def index_names_a_tensor_twice(directory: Path) -> None:
    placed = make_sharded(directory)
    path = directory / INDEX
    again = f'{json.dumps(on_disk(placed, UP))}: "{SHARDS[1]}"'
    path.write_text(path.read_text().replace('"weight_map": {', f'"weight_map": {{{again}, '))


def index_leads_elsewhere(directory: Path) -> None:
    placed = make_sharded(directory)
    shutil.move(directory / SHARDS[0], directory.parent / SHARDS[0])
    write_index(directory, {name: f"../{file}" if file == SHARDS[0] else file for name, file in placed.items()})


def index_of_absolute_paths(directory: Path) -> None:
    write_index(directory, {name: str(directory / file) for name, file in make_sharded(directory).items()})


def index_of_pickled_shards(directory: Path) -> None:
    write_index(directory, dict.fromkeys(make_sharded(directory), "pytorch_model-00001-of-00001.bin"))


def index_names_a_missing_file(directory: Path) -> None:
    make_sharded(directory)
    (directory / SHARDS[1]).unlink()


def index_names_a_missing_tensor(directory: Path) -> None:
    write_index(directory, {**make_sharded(directory), "model.layers.99.mlp.up_proj.weight": SHARDS[0]})


def index_places_a_tensor_elsewhere(directory: Path) -> None:
    placed = make_sharded(directory)
    write_index(directory, {**placed, on_disk(placed, UP): SHARDS[1]})


def index_lacks_a_tensor(directory: Path) -> None:
    placed = make_sharded(directory)
    write_index(directory, {name: file for name, file in placed.items() if name != on_disk(placed, UP)})


def truncated_shard(directory: Path) -> None:
    make_sharded(directory)
    path = directory / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])


def stale_file_beside_shards(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    make_sharded(directory)
    (directory / WEIGHTS).write_bytes(content)


def stale_shard(directory: Path) -> None:
    make_sharded(directory)
    shutil.copy(directory / SHARDS[1], directory / "model-00003-of-00003.safetensors")


def stale_shard_beside_a_file(directory: Path) -> None:
    shutil.copy(directory / WEIGHTS, directory / SHARDS[0])


def _respelt(name: str) -> str:
    long, short = "model.language_model.", "model."
    return name.replace(long, short, 1) if name.startswith(long) else name.replace(short, long, 1)


def same_tensor_in_two_spellings(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, UP)
    write_tensors(directory, {**tensors, _respelt(name): tensors[name].clone()})


def same_tensor_in_two_shards(directory: Path) -> None:
    tensors = read_tensors(directory)
    placed = make_sharded(directory)
    name, last = on_disk(tensors, UP), on_disk(tensors, NORM)
    write_tensors(directory, {last: tensors[last], _respelt(name): tensors[name]}, SHARDS[1])
    write_index(directory, {**placed, _respelt(name): SHARDS[1]})


def tensor(end: str) -> str:
    """Matches the quoted name of the decoder's tensor with this end, in any spelling."""
    return rf"'model\.[\w.]*{end}'".replace(".weight", r"\.weight")


_WHEN_OPENED: tuple[Damage, ...] = (
    (missing_folder, "does not exist; expected a folder"),
    (missing_config, r"config\.json does not exist; expected"),
    (config_not_json, r"config\.json is not readable as JSON"),
    (config_of_bytes, r"config\.json is not readable as JSON"),
    (config_is_a_list, r"config\.json is a list; expected a JSON object"),
    (config_says_it_twice, r"config\.json names 'model_type' twice"),
    (no_model_type, r"config\.json has no model_type"),
    (other_family, rf"config\.json: model_type 'llava' is not supported; supported are {', '.join(sorted(FAMILIES))}"),
    (quantised_config, r"config\.json: describes quantised weights .*gptq.* made from"),
    (missing_weights, rf"{WEIGHTS} does not exist; expected {WEIGHTS} or shards with {INDEX}"),
    (weights_are_a_folder, rf"{WEIGHTS} is a folder; expected a safetensors file"),
    (link_to_nothing, rf"{WEIGHTS} is a link to \.\./\.\./blobs/0123, which does not exist"),
    (pickled_weights, r"pickled weights \(pytorch_model\.bin\), which can run code.*python -c \""),
    (gguf_weights, r"GGUF weights \(model-Q4_K_M\.gguf\).* name the safetensors checkpoint"),
    (deepspeed_state, r"DeepSpeed training state \(global_step10\).*zero_to_fp32 .* && python -c \""),
    (
        adapter_alone,
        r"PEFT adapter \(adapter_config\.json\).*final/.*outputs/sft/final.*merge_adapter_into|peft_type is None; only",
    ),
    (adapter_beside_the_model, r"full model and an adapter \(adapter_config\.json\)"),
    (shards_without_index, rf"2 shards \({SHARDS[0]} …\) without {INDEX}; copy it"),
    (empty_file, rf"{WEIGHTS}: 0 bytes are too few .* truncated"),
    (truncated_tensors, rf"{WEIGHTS}: has \d+ bytes, but its header describes \d+; .* truncated"),
    (truncated_header, rf"{WEIGHTS}: the header claims \d+ bytes of a file of 40; .*truncated"),
    (header_length_too_large, rf"{WEIGHTS}: the header claims 9223372036854775808 bytes"),
    (header_not_json, rf"{WEIGHTS}: the header is not readable as JSON"),
    (header_of_bytes, rf"{WEIGHTS}: the header is not readable as JSON"),
    (header_is_a_list, rf"{WEIGHTS}: the header is a list; expected a JSON object"),
    (header_of_brackets, rf"{WEIGHTS}: the header is not readable as JSON"),
    (header_of_an_endless_number, rf"{WEIGHTS}: the header is not readable as JSON"),
    (metadata_of_numbers, rf"{WEIGHTS}: __metadata__ is .*'step': 3.* from string to string"),
    (tensor_twice_in_a_header, rf"{WEIGHTS}: the header names {tensor(UP)} twice"),
    (git_lfs_pointer, rf"{WEIGHTS}: .* not a safetensors file"),
    (no_tensors, rf"{WEIGHTS}: contains no tensors"),
    (wrong_offsets, rf"{WEIGHTS}: tensor {tensor(UP)} claims bytes \d+ to \d+; expected \d+ to \d+"),
    (offsets_of_another_shape, rf"{WEIGHTS}: tensor {tensor(UP)} claims .* \w+ \[2, 4\]"),
    (overlapping_tensors, rf"{WEIGHTS}: tensor 'model\.[\w.]+' claims bytes"),
    (negative_shape, rf"{WEIGHTS}: tensor {tensor(UP)} has the header entry .*\[-2, 3\]"),
    (shape_beyond_any_memory, rf"{WEIGHTS}: tensor {tensor(UP)} has the header entry"),
    (offsets_of_text, rf"{WEIGHTS}: tensor {tensor(UP)} has the header entry .*'24'"),
    (quantised_tensor, rf"{WEIGHTS}: tensor {tensor(UP)} has the dtype F8_E4M3; supported are"),
    (trailing_bytes, rf"{WEIGHTS}: has \d+ bytes, but its header describes \d+"),
    (mixed_dtypes, rf"{WEIGHTS}: tensor {tensor(UP)} is \w+, \d+ of \d+ .*from_pretrained\(.*float32"),
    (names_of_a_wrapper, rf"{WEIGHTS}: parameter 'module\..*without the prefix 'module\.' it would"),
    (tensor_of_another_model, rf"{WEIGHTS}: parameter 'score\.weight' fits no"),
    (index_not_json, rf"{INDEX} is not readable as JSON"),
    (index_without_weight_map, rf"{INDEX}: holds no weight_map"),
    (index_of_nothing, rf"{INDEX}: holds no weight_map"),
    (index_of_numbers, rf"{INDEX}: holds no weight_map"),
    (index_names_a_tensor_twice, rf"{INDEX} names {tensor(UP)} twice"),
    (index_leads_elsewhere, rf"{INDEX}: places '.*' in '\.\./{SHARDS[0]}'; expected"),
    (index_of_absolute_paths, rf"{INDEX}: places '.*' in '/.*'; expected"),
    (index_of_pickled_shards, rf"{INDEX}: places '.*' in 'pytorch_model-.*'; expected"),
    (index_names_a_missing_file, rf"{INDEX} names {SHARDS[1]}, which does not exist"),
    (index_names_a_missing_tensor, rf"{INDEX}: names '.*\.99\..*', which is in no"),
    (index_places_a_tensor_elsewhere, rf"{SHARDS[0]}: holds {tensor(UP)}, which {INDEX} places in {SHARDS[1]}"
    ),
    (index_lacks_a_tensor, rf"{SHARDS[0]}: holds {tensor(UP)}, which {INDEX} does not name"),
    (truncated_shard, rf"{SHARDS[1]}: has \d+ bytes.* truncated"),
    (stale_file_beside_shards, rf"holds both {WEIGHTS} and {INDEX}"),
    (stale_shard, rf"model-00003-of-00003\.safetensors is a shard that {INDEX} does not name"),
    (stale_shard_beside_a_file, rf"{SHARDS[0]} is a shard that no index names"),
    (same_tensor_in_two_spellings, rf"{WEIGHTS}: tensor {tensor(UP)} appears twice"),
    (same_tensor_in_two_shards, rf"{SHARDS[1]}: tensor {tensor(UP)} appears twice, also in"),
)  # fmt: skip


def lost_tensor(directory: Path) -> None:
    tensors = read_tensors(directory)
    write_tensors(directory, {name: value for name, value in tensors.items() if name != on_disk(tensors, UP)})


def lost_norm(directory: Path) -> None:
    tensors = read_tensors(directory)
    write_tensors(directory, {name: value for name, value in tensors.items() if name != on_disk(tensors, NORM)})


def lost_layer(directory: Path) -> None:
    write_tensors(
        directory, {name: value for name, value in read_tensors(directory).items() if ".layers.1." not in name}
    )


def added_layer(directory: Path) -> None:
    tensors = read_tensors(directory)
    added = {name.replace(".layers.0.", ".layers.77."): value.clone() for name, value in tensors.items()}
    write_tensors(directory, {**added, **tensors})


def added_tensor(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, UP)
    write_tensors(directory, {**tensors, name.replace("up_proj", "upper_proj"): tensors[name].clone()})


def transposed_tensor(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, UP)
    write_tensors(directory, {**tensors, name: tensors[name].T.contiguous()})


def shorter_vocabulary(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, EMBED)
    write_tensors(directory, {**tensors, name: tensors[name][:-1].contiguous()})


def weights_left_on_other_processes(directory: Path) -> None:
    write_tensors(directory, {name: value.new_empty(0) for name, value in read_tensors(directory).items()})


def weights_of_integers(directory: Path) -> None:
    tensors = read_tensors(directory)
    name = on_disk(tensors, UP)
    write_tensors(directory, {**tensors, name: tensors[name].to(torch.uint8)})


def head_beside_tied_embeddings(directory: Path) -> None:
    tensors = read_tensors(directory)
    write_tensors(directory, {**tensors, "lm_head.weight": tensors[on_disk(tensors, EMBED)] + 1})


def untied_without_head(directory: Path) -> None:
    edit_config(directory, tie_word_embeddings=False)
    config = json.loads((directory / CONFIG).read_text())
    edit_config(directory, text_config={**config["text_config"], "tie_word_embeddings": False})


_WHEN_COMPARED: tuple[Damage, ...] = (
    (lost_tensor, rf"{WEIGHTS}: lacks {tensor(UP)}, which"),
    (lost_norm, rf"{WEIGHTS}: lacks 'model\.language_model\.norm\."),
    (lost_layer, rf"{WEIGHTS}: lacks 'model\.language_model\.layers\.1\..* asks for"),
    (added_layer, rf"{WEIGHTS}: holds 'model\.language_model\.layers\.77\..*config\.json"),
    (added_tensor, rf"{WEIGHTS}: holds {tensor('layers.0.mlp.upper_proj.weight')}, (for )?which"),
    (transposed_tensor, rf"{WEIGHTS}: tensor {tensor(UP)} has the shape \[\d+, \d+\]; .*\[\d+, "),
    (shorter_vocabulary, rf"{WEIGHTS}: tensor {tensor(EMBED)} has the shape .*config\.json asks"),
    (weights_left_on_other_processes, r"has the shape \[0\]; config\.json asks for"),
    (weights_of_integers, rf"{WEIGHTS}: tensor {tensor(UP)} is U8; expected one of .* made from"),
    (head_beside_tied_embeddings, rf"{WEIGHTS}: 'lm_head\.weight' differs from .*tie_wo"),
    (untied_without_head, rf"{WEIGHTS}: lacks 'lm_head\."),
)  # fmt: skip

DAMAGES = {function.__name__: (function, message) for function, message in _WHEN_OPENED}
MISFITS = {function.__name__: (function, message) for function, message in _WHEN_COMPARED}
