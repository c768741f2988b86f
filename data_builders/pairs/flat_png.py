"""Writes images with few colours as PNG in half the time, without the filters that Pillow tries on every row.

Filters help photographs; on plain pages they only cost time. Pillow has no option for this, but writes palette images
without filters. So the bytes of an RGB row are passed to it as a palette image three times as wide, and the compressed
rows get an RGB header. The result depends only on Pillow's bundled zlib, as for all other images; Python and OpenCV use
the system's.

A page of 384 x 384 pixels with one object: 1.0 ms against 2.4, in 11.8 KB against 12.8.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from data_builders.prompt_sets.images import COMPRESS_LEVEL

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"L": 0, "RGB": 2}
"""Pillow's mode -> PNG colour type (PNG specification, table 11.1)."""
PALETTE = bytes(256 * 3)
"""A full palette, so that each entry takes one byte; it is not stored."""


def encode_flat(image: Image.Image) -> bytes:
    """Returns a grey or RGB image as PNG, eight bits per channel, without row filters."""
    assert image.mode in COLOUR_TYPES, f"a picture in mode {image.mode}; expected {' or '.join(COLOUR_TYPES)}"
    width, height = image.size
    rows = Image.frombytes("P", (width * len(image.getbands()), height), image.tobytes())
    rows.putpalette(PALETTE)
    file = BytesIO()
    rows.save(file, format="PNG", compress_level=COMPRESS_LEVEL)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[image.mode], 0, 0, 0)
    kept = [(kind, body) for kind, body in _chunks(file.getvalue()) if kind in (b"IDAT", b"IEND")]
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in [(b"IHDR", header), *kept])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(SIGNATURE)
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        yield kind, data[position + 8 : position + 8 + length]
        position += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
