"""Changes of one tensor: any bits come back, in few bytes; damaged streams are refused."""

from dataclasses import replace

import numpy as np
import pytest

from merge.trajectories.changes import ALL, BITMAP, GAPS, StoredChange, decode, encode, most_bytes

NUM_ELEMENTS = 20_000
MOST_BYTES = 1.3
"""Stored bytes to changed bytes: the promise of the format."""


def pair(width: int, share: float, *, seed: int = 0, num_elements: int = NUM_ELEMENTS) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers of some bytes before and after a share of them got other, random bits."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(f"<u{width}")
    before = rng.integers(0, 2 ** (8 * width), num_elements, dtype=dtype, endpoint=False)
    chosen = rng.random(num_elements) < share
    bits = rng.integers(1, 2 ** (8 * width), num_elements, dtype=dtype, endpoint=False)
    return before, np.where(chosen, before ^ bits, before)


def size(change: StoredChange) -> int:
    return len(change.places) + len(change.values)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("share", "coding"),
    [(1.0, {ALL}), (0.5, {BITMAP}), (0.08, {BITMAP}), (0.03, {"gaps8"}), (0.005, {"gaps16"}), (2e-4, {"gaps16"})],
)
def test_any_bits_are_restored(width: int, share: float, coding: set[str]) -> None:
    before, after = pair(width, share)
    change = encode(before, after)
    assert change is not None
    assert change.num_changed == np.count_nonzero(before != after) and change.coding in coding
    assert decode(before, change).tobytes() == after.tobytes()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("num_elements", [1, 100, NUM_ELEMENTS])
def test_no_change_takes_more_than_the_bound_that_plans_of_disk_space_use(width: int, num_elements: int) -> None:
    """Random bits do not compress, so the largest change must also come close to the bound."""
    bound, largest = most_bytes(num_elements, width), 0
    for share in (1.0, 0.9999, 0.99, 0.9, 0.5, 0.1, 0.05, 0.01):
        change = encode(*pair(width, share, num_elements=num_elements))
        if change is not None:
            assert size(change) <= bound
            largest = max(largest, size(change))
    assert num_elements < NUM_ELEMENTS or largest > 0.85 * bound


def test_an_unchanged_tensor_and_an_empty_one_store_nothing() -> None:
    before, _ = pair(2, 0.5)
    assert encode(before, before.copy()) is None
    assert encode(before[:0], before[:0]) is None


def test_distant_single_elements_are_restored() -> None:
    before = np.zeros(70_000, "<u2")
    for place in (0, 69_999):
        after = before.copy()
        after[place] = 0x7FC1  # a NaN's bits
        change = encode(before, after)
        assert change is not None and change.coding in GAPS and size(change) < 64
        assert np.array_equal(decode(before, change), after)


@pytest.mark.parametrize("share", [0.9, 0.3, 0.1, 0.02])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_small_steps_of_weights_take_less_than_their_changed_bytes_and_a_third(share: float, dtype: str) -> None:
    """Random weights of 0.02 and steps of 1e-5, as reinforcement learning takes them; half of the ulps at most."""
    rng = np.random.default_rng(1)
    weights = (0.02 * rng.standard_normal(NUM_ELEMENTS)).astype("<f4")
    moved = weights + np.where(rng.random(NUM_ELEMENTS) < share, 1e-5 * rng.standard_normal(NUM_ELEMENTS), 0)
    before, after = (values.astype("<f4").view("<u4") for values in (weights, moved))
    if dtype == "BF16":
        before = (before >> 16).astype("<u2")
        after = (before + (rng.random(NUM_ELEMENTS) < share) * rng.choice([1, -1, 2], NUM_ELEMENTS)).astype("<u2")
    change = encode(before, after)
    assert change is not None
    assert size(change) <= MOST_BYTES * change.num_changed * before.itemsize
    assert np.array_equal(decode(before, change), after)


def test_damaged_streams_are_refused() -> None:
    before, after = pair(2, 0.1)
    change = encode(before, after)
    assert change is not None
    damaged = bytearray(change.values)
    damaged[len(damaged) // 2] ^= 0x10
    for broken, words in (
        (replace(change, values=bytes(damaged)), "damaged"),
        (replace(change, values=change.values[:-9]), "damaged"),
        (replace(change, num_changed=change.num_changed + 1), "values of 2 bytes"),
        (replace(change, coding="runs"), "coded as 'runs'"),
        (replace(change, coding=ALL), "expected all"),
    ):
        with pytest.raises(ValueError, match=words):
            decode(before, broken)
    with pytest.raises(ValueError, match="bitmap of"):
        decode(before[:-64], change)
