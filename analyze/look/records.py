"""What is stored of one reply read by one model: its maps over the picture, and the probability of every token."""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tracking.records import Record

GROUPS = ("all", "early", "mid", "late")
"""Layers over which maps are averaged: all, and each block."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reply read by one model; maps are attention masses of cells, so a map sums to the mass on the picture."""

    key: str
    """`TASK/ID/AUTHOR`."""
    model: str
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of every grid of cells."""
    pictures: tuple[int, ...]
    """The number of the picture over which each grid lies; a tiled picture has two, one for its thumbnail."""
    layers: tuple[int, ...]
    """The layers with an attention map."""
    parts: Float[np.ndarray, "layers parts cells"]
    tokens: Float[np.ndarray, "groups tokens cells"]
    positions: tuple[int, ...]
    """Numbers of these tokens in the reply."""
    texts: tuple[str, ...]
    """Every token of the reply."""
    logprobs: Float[np.ndarray, " reply_tokens"]
    """In nats."""
    rollout: Float[np.ndarray, "tokens cells"] | None = None
    heads: Float[np.ndarray, "layers heads cells"] | None = None
    sum_error: float = 0.0

    def record(self) -> Record:
        """Returns it as JSON values."""
        arrays = {"parts": self.parts, "tokens": self.tokens, "rollout": self.rollout, "heads": self.heads}
        return {
            "key": f"{self.key}/{self.model}", "look": self.key, "model": self.model,
            "grids": [list(grid) for grid in self.grids], "pictures": list(self.pictures), "layers": list(self.layers),
            "positions": list(self.positions), "texts": list(self.texts),
            "logprobs": [float(f"{value:.6g}") for value in self.logprobs], "sum_error": self.sum_error,
            **{name: _encode(array) for name, array in arrays.items() if array is not None},
        }  # fmt: skip


def read_reading(record: Record) -> Reading:
    """Returns a stored reading."""
    return Reading(
        key=record["look"],
        model=record["model"],
        grids=tuple((rows, columns) for rows, columns in record["grids"]),
        pictures=tuple(record["pictures"]),
        layers=tuple(record["layers"]),
        parts=_decode(record["parts"]),
        tokens=_decode(record["tokens"]),
        positions=tuple(record["positions"]),
        texts=tuple(record["texts"]),
        logprobs=np.array(record["logprobs"]),
        rollout=_decode(record["rollout"]) if "rollout" in record else None,
        heads=_decode(record["heads"]) if "heads" in record else None,
        sum_error=record["sum_error"],
    )


def _encode(array: np.ndarray) -> dict[str, Any]:
    data = zlib.compress(np.ascontiguousarray(array, "<f4").tobytes(), 1)
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode()}


def _decode(stored: dict[str, Any]) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(stored["float32"]))
    return np.frombuffer(data, "<f4").reshape(stored["shape"])
