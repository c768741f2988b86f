import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.shards import Entry, encode_header, num_bytes, read_header, same_bytes, write_safetensors
from tests.models.damage import replace_header

TENSORS = {
    "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "a": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "ü": torch.tensor([True, False, True]),
}
ENTRIES: list[Entry] = [("b", "I64", (2, 3)), ("a", "BF16", ()), ("empty", "F32", (0, 4)), ("ü", "BOOL", (3,))]


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_what_is_written_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, ENTRIES, lambda name: raw_bytes(TENSORS[name]))
    read = load_file(path)
    assert set(read) == set(TENSORS) and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_a_header_and_the_tensors_bytes_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = b"".join(raw_bytes(TENSORS[name]) for name, _, _ in ENTRIES)
    path.write_bytes(encode_header(ENTRIES, {"format": "pt", "step": "3"}) + content)
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "step": "3"}
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in TENSORS.items())
    header = read_header(path)
    assert header.metadata == {"format": "pt", "step": "3"}
    assert [(stored.name_on_disk, stored.dtype, stored.shape) for stored in header.tensors] == ENTRIES
    assert [stored.num_bytes for stored in header.tensors] == [num_bytes(entry) for entry in ENTRIES]
    assert all(path.read_bytes()[s.offset :][: s.num_bytes] == raw_bytes(TENSORS[s.name]) for s in header.tensors)
    assert header.tensors[0].offset % 8 == 0


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    header = read_header(path)
    assert header.metadata == {}
    assert {stored.name: stored.shape for stored in header.tensors} == {n: tuple(t.shape) for n, t in TENSORS.items()}


@pytest.mark.parametrize("num_elements", [0, 1, 2**17 - 1, 2**17, 2**17 + 1, 3 * 2**17 + 5])
def test_equal_bytes_are_told_from_others_wherever_they_differ(num_elements: int) -> None:
    one = memoryview(bytes(num_elements))
    assert same_bytes(one, memoryview(bytes(num_elements)))
    assert not same_bytes(one, memoryview(bytes(num_elements + 1)))
    for position in {0, num_elements // 2, num_elements - 1} if num_elements else ():
        other = bytearray(num_elements)
        other[position] = 1
        assert not same_bytes(one, memoryview(other))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"dtype": "F32", "shape": [2, 3]},
        {"dtype": "F32", "data_offsets": [24, 48]},
        {"shape": [2, 3], "data_offsets": [24, 48]},
        {"dtype": "F32\nF32", "shape": [2, 3], "data_offsets": [24, 48]},
        {"dtype": ["F32"], "shape": [2, 3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [2.0, 3], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [True, 6], "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": 6, "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": "23", "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [1] * 65, "data_offsets": [24, 48]},
        {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [24, 24]},
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [24, 24]},
        {"dtype": "F32", "shape": [2**60] * 64, "data_offsets": [24, 24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24.0, 48.0]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48, 72]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": None},
        {"dtype": "F32", "shape": ["x" * 100_000], "data_offsets": [24, 48]},
    ],
)
def test_malformed_header_entry_is_one_line_naming_file_and_tensor(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"down": torch.ones(3, 2), "up": torch.ones(2, 3)}, path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    replace_header(tmp_path, json.dumps({**header, "up": entry}).encode())
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor 'up' has the header entry") as caught:
        read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_every_file_cut_short_is_refused(tmp_path: Path, pocket_checkpoint: Path) -> None:
    path = Path(shutil.copy(pocket_checkpoint / "model.safetensors", tmp_path))
    content = path.read_bytes()
    for length in (*range(64), *range(64, len(content), len(content) // 40), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors: .*truncated"):
            read_header(path)
