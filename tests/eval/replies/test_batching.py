"""Batches that are halved where memory runs out: torch's own allocator refuses, nothing is pretended."""

from collections.abc import Sequence

import pytest
import torch

from eval.replies.batching import BatchSize

FITS = 3
"""Items that fit; one more asks for more memory than any machine has."""


def double(items: Sequence[int], *, fits: int = FITS) -> list[int]:
    if len(items) > fits:
        torch.empty(2**58)
    return [2 * item for item in items]


def test_batches_are_halved_until_they_fit_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    size = BatchSize(16)
    batches = list(size.run(range(10), double))
    assert [list(items) for items, _ in batches] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [result for _, results in batches for result in results] == [2 * item for item in range(10)]
    assert [list(items) for items, _ in size.run([7, 8, 9], double)] == [[7, 8], [9]]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "out of memory with 10 at once, going on with 5", "out of memory with 5 at once, going on with 2"
    ]  # fmt: skip


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"out of memory with one at once; use a narrower dtype .*can't allocate"):
        list(BatchSize(4).run(range(4), lambda items: double(items, fits=0)))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    size = BatchSize(4)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(size.run(range(4), work))
    assert size.size == 4


@pytest.mark.gpu
def test_batches_are_halved_on_a_gpu_too() -> None:
    def work(items: Sequence[int]) -> list[int]:
        torch.empty(2**20 if len(items) <= FITS else 2**50, dtype=torch.uint8, device="cuda")
        return list(items)

    assert [list(items) for items, _ in BatchSize(8).run(range(4), work)] == [[0, 1], [2, 3]]


def test_no_items_are_no_batches_and_a_size_below_one_is_refused() -> None:
    assert list(BatchSize(4).run([], double)) == []
    with pytest.raises(ValueError, match="batch size is 0"):
        BatchSize(0)
