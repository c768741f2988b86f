"""Pages stored without filters are read back as they were, by every reader."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from data_builders.pairs.flat_png import encode_flat


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (384, 384), (640, 8), (900, 700)])
def test_every_pixel_is_read_back(mode: str, size: tuple[int, int]) -> None:
    import cv2

    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    for picture in (rng.integers(0, 256, shape, dtype=np.uint8), np.full(shape, 200, np.uint8)):
        stored = encode_flat(Image.fromarray(picture))
        with Image.open(BytesIO(stored)) as read:
            read.verify()  # the check sums of all chunks
        with Image.open(BytesIO(stored)) as read:
            assert (read.mode, read.size) == (mode, size)
            assert np.array_equal(np.asarray(read), picture)
        by_opencv = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(by_opencv[..., ::-1] if mode == "RGB" else by_opencv, picture)


def test_a_plain_page_takes_little_room() -> None:
    page = Image.new("RGB", (448, 448), (255, 255, 255))
    page.paste((220, 30, 35), (100, 120, 180, 200))
    stored = encode_flat(page)
    assert struct.unpack(">II", stored[16:24]) == (448, 448)
    assert len(stored) < 448 * 448 * 3 / 100
