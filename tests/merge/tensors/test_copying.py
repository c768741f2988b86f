import hashlib
from pathlib import Path

import pytest
import torch

from merge.tensors.copying import BUFFER_BYTES, NUM_BUFFERS, ByteRange, write_shard


@pytest.mark.slow
def test_shard_of_every_size_of_piece_is_whole_and_hashed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 256, (BUFFER_BYTES * (NUM_BUFFERS + 2) + 7,), dtype=torch.uint8, generator=generator)
    content = source.numpy().tobytes()
    (tmp_path / "source").write_bytes(content)
    sizes = [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, 3, BUFFER_BYTES * NUM_BUFFERS]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    parts = [content[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
    ranges = [ByteRange(tmp_path / "source", offset, size) for offset, size in zip(offsets, sizes, strict=True)]
    chunks = [b"computed" * 100, b"", b"in three"]
    advanced: list[int] = []
    hashes = write_shard(tmp_path / "shard", b"header", [*ranges[:3], chunks, *ranges[3:]], advance=advanced.append)
    expected = [*parts[:3], b"".join(chunks), *parts[3:]]
    assert (tmp_path / "shard").read_bytes() == b"header" + b"".join(expected)
    assert hashes == [hashlib.sha256(part).hexdigest() for part in expected]
    assert sum(advanced) == sum(map(len, expected))


def test_source_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"source: ends at byte 5, before a tensor's end at 9"):
        write_shard(tmp_path / "shard", b"", [ByteRange(tmp_path / "source", 1, 8)])
