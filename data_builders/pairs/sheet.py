"""Draws a contact sheet of pairs: target and source side by side, with prompt and answers below."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from data_builders.pairs.pair import Box, Pair
from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import DECODING_ERRORS

PREVIEW_FILE = "preview.png"
COLUMNS = 3
PICTURE_PIXELS = 200
"""Longest side of an image on the sheet."""
GAP_PIXELS = 6
MARGIN_PIXELS = 14
LINE_PIXELS = 16
FONT_PIXELS = 12
PAGE_RGB = (255, 255, 255)
FRAME_RGB = (200, 200, 200)
INK_RGB = (40, 40, 40)
QUIET_RGB = (110, 110, 110)
BOX_RGB = (220, 30, 120)


def sheet_font(pixels: int = FONT_PIXELS) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, which comes with Matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", pixels)


def draw_sheet(directory: Path, pairs: Sequence[Pair], *, columns: int = COLUMNS) -> Image.Image:
    """Returns a contact sheet of pairs, row by row, with target, source and boxes, if any."""
    columns = min(columns, len(pairs))
    tiles = [_draw_tile(directory, pair) for pair in pairs]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    rows = -(-len(tiles) // columns)
    page = (columns * (width + MARGIN_PIXELS) + MARGIN_PIXELS, rows * (height + MARGIN_PIXELS) + MARGIN_PIXELS)
    sheet = Image.new("RGB", page, PAGE_RGB)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        corner = (MARGIN_PIXELS + column * (width + MARGIN_PIXELS), MARGIN_PIXELS + row * (height + MARGIN_PIXELS))
        sheet.paste(tile, corner)
    return sheet


def _draw_tile(directory: Path, pair: Pair) -> Image.Image:
    boxes = (pair.target_box, pair.source_box)
    pictures = []
    for name, box in zip(pair.images, boxes, strict=True):
        try:
            pictures.append(_draw_picture(directory / name, box))
        except DECODING_ERRORS as error:
            raise ValueError(
                f"{pair.id}: {name} is missing or cannot be decoded; python -m data_builders.validate lists all such"
            ) from error
    width = sum(picture.width for picture in pictures) + GAP_PIXELS
    height = max(picture.height for picture in pictures)
    font = sheet_font()
    lines = [*_wrap(pair.prompt, width, font), f"{pair.target_answer}  |  {pair.source_answer}"]
    tile = Image.new("RGB", (width, height + (len(lines) + 1) * LINE_PIXELS), PAGE_RGB)
    tile.paste(pictures[0], (0, 0))
    tile.paste(pictures[1], (pictures[0].width + GAP_PIXELS, 0))
    canvas = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        ink = INK_RGB if number == len(lines) - 1 else QUIET_RGB
        canvas.text((0, height + GAP_PIXELS + number * LINE_PIXELS), line, fill=ink, font=font)
    return tile


def _draw_picture(path: Path, box: Box | None) -> Image.Image:
    with Image.open(path) as opened:
        picture = eight_bits(opened).convert("RGB")
    scale = PICTURE_PIXELS / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(picture)
    if box is not None:
        left, top, right, bottom = (round(edge * scale) for edge in box)
        canvas.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=BOX_RGB)
    canvas.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=FRAME_RGB)
    return picture


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Wraps a text into lines of at most `width` pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
