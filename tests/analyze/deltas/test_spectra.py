"""Spectra against closed forms and NumPy in fp64: no value above 1e-4 σ_1 is off by more than 1e-4 of itself."""

import math

import numpy as np
import pytest
import torch

from analyze.deltas.ranks import Spectrum, SpectrumSummary, summarise_spectrum
from analyze.deltas.spectra import (
    gram_matrix,
    in_batches,
    matched_null,
    singular_values,
    singular_values_batched,
)


def noise(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, *, seed: int) -> torch.Tensor:
    return torch.linalg.qr(noise(rows, columns, seed=seed).double())[0]


def of_rank(rank: int, rows: int, columns: int) -> torch.Tensor:
    """Returns a matrix with the singular values rank, …, 2, 1."""
    values = torch.arange(rank, 0, -1, dtype=torch.float64)
    return ((orthonormal(rows, rank, seed=1) * values) @ orthonormal(columns, rank, seed=2).T).float()


def rounded_update(dtype: torch.dtype, *, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a true rank-1 update of rms 1e-6 on weights of std 0.02, and the change that `dtype` stores of it."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(size, size, generator=generator) * 0.02
    update = torch.randn(size, 1, generator=generator) @ torch.randn(1, size, generator=generator)
    update *= 1e-6 / update.square().mean().sqrt()
    return update, (weights + update).to(dtype).float() - weights.to(dtype).float()


def summary_of(delta: torch.Tensor) -> SpectrumSummary:
    return summarise_spectrum(singular_values(delta))


def graded(rows: int, columns: int) -> torch.Tensor:
    return noise(rows, columns) * torch.logspace(0, -12, rows)[:, None]


def with_zeros(rows: int, columns: int) -> torch.Tensor:
    matrix = noise(rows, columns)
    matrix[::3], matrix[:, ::2] = 0, 0
    return matrix


SHAPES = [(1, 1), (2, 3), (60, 60), (200, 90), (90, 2500), (2500, 90)]
MATRICES = {
    "random": noise,
    "positive": lambda rows, columns: noise(rows, columns).abs(),
    "rank 1": lambda rows, columns: noise(rows, 1) @ noise(1, columns, seed=1),
    "rank 8": lambda rows, columns: noise(rows, 8) @ noise(8, columns, seed=1),
    "nearly rank 1": lambda rows, columns: (
        noise(rows, 1) @ noise(1, columns, seed=1) + 1e-4 * noise(rows, columns, seed=2)
    ),
    "graded": graded,
    "tiny values": lambda rows, columns: 1e-30 * noise(rows, columns),
    "zero rows and columns": with_zeros,
    "bf16": lambda rows, columns: (
        (noise(rows, columns) * 0.02 + noise(rows, columns, seed=1) * 1e-4).bfloat16()
        - (noise(rows, columns) * 0.02).bfloat16()
    ),
    "transposed": lambda rows, columns: noise(columns, rows).T,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MATRICES)
def test_values_agree_with_numpy_in_fp64_and_keep_to_their_stated_errors(kind: str, shape: tuple[int, int]) -> None:
    delta = MATRICES[kind](*shape)
    expected = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    spectrum = singular_values(delta)
    assert len(spectrum.values) == spectrum.num_values == min(shape)
    assert spectrum.is_full
    above = expected > 1e-4 * expected[0]
    np.testing.assert_allclose(spectrum.values[above], expected[above], rtol=1e-4)
    numpy_error = 1e-15 * math.sqrt(max(shape)) * expected[0]
    assert (np.abs(spectrum.values - expected) <= spectrum.errors + numpy_error).all()
    assert (np.diff(spectrum.values) <= 0).all()


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("shape", [(150, 150), (100, 1500), (1500, 100)])
def test_known_ranks_have_their_values_and_nothing_else(rank: int, shape: tuple[int, int]) -> None:
    spectrum = singular_values(of_rank(rank, *shape))
    np.testing.assert_allclose(spectrum.values[:rank], np.arange(rank, 0, -1), rtol=1e-5)
    assert (spectrum.values[rank:] < 1e-6 * rank).all()
    assert spectrum.method == "svd"  # the Gram matrix would show a plateau at 1e-8 that is not there


def test_an_exact_rank_leaves_values_that_cannot_be_told_from_zero() -> None:
    delta = torch.outer(torch.arange(1.0, 91), torch.arange(1.0, 121))
    spectrum = singular_values(delta)
    assert len(spectrum.resolved) == 1
    summary = summarise_spectrum(spectrum)
    assert summary.num_in_log_volume == 1
    assert summary.log_volume == pytest.approx(math.log(float(delta.double().norm())))
    assert summary.log_decay.tolist() == [0.0]
    for rank in (summary.stable_rank, summary.effective_rank, summary.participation_ratio):
        assert rank == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("smallest", "gram_error", "tolerance"), [(1e-7, 2e-4, 1e-6), (1e-12, 1e-1, 1e-3)])
def test_where_the_gram_matrix_loses_small_values_they_are_found_by_full_decomposition(
    smallest: float, gram_error: float, tolerance: float
) -> None:
    values = torch.logspace(0, math.log10(smallest), 40, dtype=torch.float64)
    delta = (orthonormal(40, 40, seed=3) * values) @ orthonormal(300, 40, seed=4).T
    from_gram = torch.linalg.eigvalsh(gram_matrix(delta)).clamp(min=0).sqrt().flip(0)
    assert (from_gram / values - 1).abs().max() > gram_error
    spectrum = singular_values(delta)
    assert spectrum.method == "svd"
    np.testing.assert_allclose(spectrum.values, values.numpy(), rtol=tolerance)


def test_a_matrix_cut_into_blocks_and_chunks_has_the_gram_matrix_of_the_whole() -> None:
    matrix = noise(1030, 1100)
    expected = matrix.double() @ matrix.double().T
    for given in (matrix, matrix.T):
        assert torch.allclose(gram_matrix(given).tril(), expected.tril(), rtol=1e-12, atol=1e-10)


def test_orthogonal_and_diagonal_matrices_match_their_closed_forms() -> None:
    size = 120
    summary = summary_of(orthonormal(size, size, seed=0) * 3)
    assert summary.spectral_norm == pytest.approx(3)
    assert summary.nuclear_norm == pytest.approx(3 * size)
    assert summary.frobenius_norm == pytest.approx(3 * math.sqrt(size))
    for rank in (summary.stable_rank, summary.effective_rank, summary.participation_ratio):
        assert rank == pytest.approx(size)
    assert summary.log_volume == pytest.approx(50 * math.log(3))
    np.testing.assert_allclose(summary.log_decay, np.zeros(50), atol=1e-9)

    diagonal = torch.tensor([4.0, -1.0, 2.0, 1.0])
    spectrum = singular_values(torch.diag(diagonal))
    np.testing.assert_allclose(spectrum.values, [4, 2, 1, 1], rtol=1e-12)
    summary = summarise_spectrum(spectrum)
    assert summary.nuclear_norm == pytest.approx(8)
    assert summary.stable_rank == pytest.approx(22 / 16)
    assert summary.effective_rank == pytest.approx(2 ** (0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3))
    assert summary.participation_ratio == pytest.approx(22**2 / (256 + 16 + 1 + 1))
    assert summary.log_volume == pytest.approx(math.log(8))
    np.testing.assert_allclose(summary.log_decay, np.log([1, 0.5, 0.25, 0.25]), atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7), (7,), (0, 4)])
def test_no_change_has_no_rank_and_no_log(shape: tuple[int, ...]) -> None:
    spectrum = singular_values(torch.zeros(shape))
    assert not spectrum.values.any()
    summary = summarise_spectrum(spectrum)
    assert (summary.spectral_norm, summary.nuclear_norm, summary.frobenius_norm) == (0, 0, 0)
    assert (summary.stable_rank, summary.effective_rank, summary.participation_ratio) == (0, 0, 0)
    assert summary.log_volume is None
    assert summary.num_in_log_volume == len(summary.log_decay) == 0


def test_vectors_have_one_value_and_kernels_a_row_per_output() -> None:
    bias, kernel = noise(1, 300)[0], noise(6, 3 * 2 * 4 * 4).reshape(6, 3, 2, 4, 4)
    assert singular_values(bias).values == pytest.approx([float(bias.double().norm())], rel=1e-12)
    assert singular_values(bias[0]).values == pytest.approx([abs(float(bias[0]))])
    expected = np.linalg.svd(kernel.reshape(6, 96).double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(kernel).values, expected, rtol=1e-10)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad: float, top_k: int | None) -> None:
    delta = noise(20, 30)
    delta[3, 4] = bad
    with pytest.raises(ValueError, match="1 of 600 elements are not finite"):
        singular_values(delta, top_k=top_k)
    if top_k is None:
        with pytest.raises(ValueError, match="not finite"):
            singular_values_batched([noise(20, 30), delta])


def test_leading_values_lie_within_their_stated_errors() -> None:
    for delta in (noise(300, 900), of_rank(8, 300, 900) + 0.02 * noise(300, 900), graded(900, 300)):
        exact = singular_values(delta).values
        spectrum = singular_values(delta, top_k=8)
        assert spectrum.method == "randomised"
        assert (len(spectrum.values), spectrum.num_values, spectrum.is_full) == (8, 300, False)
        assert (np.abs(spectrum.values - exact[:8]) <= spectrum.errors).all()
    clear = singular_values(of_rank(8, 300, 900), top_k=4)
    np.testing.assert_allclose(clear.values, [8, 7, 6, 5], rtol=1e-5)
    assert (clear.errors < 1e-4).all()


def test_leading_values_repeat_with_their_seed_and_leave_other_randomness_alone() -> None:
    delta = noise(80, 90)
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (singular_values(delta, top_k=3, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected_draw)
    assert (first == again).all()
    assert (first != other).any()


def test_as_many_leading_values_as_there_are_is_all_of_them_exactly() -> None:
    spectrum = singular_values(noise(6, 40), top_k=6)
    assert (spectrum.method, spectrum.is_full) == ("gram", True)
    with pytest.raises(ValueError, match="top_k is 0"):
        singular_values(noise(6, 40), top_k=0)


def test_leading_values_alone_leave_open_what_needs_the_others() -> None:
    delta = noise(60, 80)
    norm = float(delta.double().norm())
    summary = summarise_spectrum(singular_values(delta, top_k=5), frobenius_norm=norm)
    assert summary.nuclear_norm is summary.effective_rank is summary.participation_ratio is None
    assert summary.frobenius_norm == norm
    assert summary.stable_rank == pytest.approx((norm / summary.spectral_norm) ** 2)
    assert summary.num_in_log_volume == 5
    assert summarise_spectrum(singular_values(delta, top_k=5)).stable_rank is None


def assert_same(one: Spectrum, other: Spectrum) -> None:
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    assert (one.method, one.num_values) == (other.method, other.num_values)


def test_a_batch_gives_what_each_gives_alone() -> None:
    deltas = [noise(40, 70), torch.zeros(40, 70), of_rank(3, 40, 70), with_zeros(40, 70), noise(40, 70, seed=1)]
    for together, alone in zip(singular_values_batched(deltas), map(singular_values, deltas), strict=True):
        assert_same(together, alone)
    assert singular_values_batched([]) == []
    with pytest.raises(ValueError, match="expected one shape"):
        singular_values_batched([noise(2, 3), noise(3, 2)])


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    sizes = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return [item * item for item in batch]

    assert in_batches(list(range(7)), 8, work) == [0, 1, 4, 9, 16, 25, 36]
    assert sizes == [7, 4, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        in_batches([[1, 2, 3]], 1, lambda batch: work(batch[0]))


@pytest.mark.gpu
def test_a_gpu_gives_what_the_processor_gives() -> None:
    deltas = [noise(600, 1500), of_rank(8, 600, 1500), noise(600, 1500, seed=1)]
    for delta, together in zip(deltas, singular_values_batched(deltas, device="cuda"), strict=True):
        alone = singular_values(delta)
        clear = alone.values > 1e-6 * alone.values[0]
        for spectrum in (together, singular_values(delta, device="cuda")):
            np.testing.assert_allclose(spectrum.values[clear], alone.values[clear], rtol=1e-8)
        leading = singular_values(delta, top_k=8, device="cuda")
        assert (np.abs(leading.values - alone.values[:8]) <= leading.errors).all()


def test_the_null_keeps_magnitudes_and_draws_places_and_signs_by_its_seed() -> None:
    delta = noise(80, 90).T
    kept = delta.clone()
    null = matched_null(delta, seed=3)
    assert torch.equal(delta, kept)
    assert null.shape == delta.shape
    assert torch.equal(null.abs().flatten().sort()[0], delta.abs().flatten().sort()[0])
    assert torch.equal(null, matched_null(delta, seed=3))
    assert (null != matched_null(delta, seed=4)).float().mean() > 0.99
    assert (null.abs() == delta.abs()).float().mean() < 0.01
    assert abs(float((null > 0).float().mean()) - 0.5) < 0.03


def test_the_null_has_no_direction_where_the_change_has_one_and_the_same_rank_where_it_has_none() -> None:
    update = noise(150, 1).abs() @ noise(1, 200, seed=1).abs()  # one direction and a mean
    assert summary_of(update).effective_rank == pytest.approx(1, abs=1e-3)
    assert summary_of(matched_null(update, seed=0)).stable_rank > 20
    without = noise(150, 200)
    ratio = summary_of(without).effective_rank / summary_of(matched_null(without, seed=0)).effective_rank
    assert ratio == pytest.approx(1, abs=0.02)


def test_a_rank_one_update_below_rounding_is_lost_in_noise_once_stored_as_bf16() -> None:
    """What the released code measures of a true rank-1 update; a shape that takes no time."""
    update, in_fp32 = rounded_update(torch.float32, size=256)
    assert summary_of(in_fp32).effective_rank == pytest.approx(1.08, abs=0.005)
    for dtype, growth, rank in ((torch.bfloat16, 7.84, 120.9), (torch.float16, 2.74, 164.8)):
        _, stored = rounded_update(dtype, size=256)
        assert float(stored.norm() / update.norm()) == pytest.approx(growth, rel=0.01)
        assert summary_of(stored).effective_rank == pytest.approx(rank, rel=0.01)
        null = summary_of(matched_null(stored, seed=0))
        assert 0.7 * null.effective_rank < summary_of(stored).effective_rank < null.effective_rank
    null = summary_of(matched_null(in_fp32, seed=0))
    assert summary_of(in_fp32).effective_rank < 0.01 * null.effective_rank


@pytest.mark.slow
def test_the_published_figures_of_that_update_are_those_of_a_matrix_of_2000_by_2000() -> None:
    figures = {torch.float32: (1.26, 1.0), torch.bfloat16: (1281, 7.5), torch.float16: (1345, 2.7)}
    for dtype, (rank, growth) in figures.items():
        update, stored = rounded_update(dtype, size=2000)
        assert summary_of(stored).effective_rank == pytest.approx(rank, rel=0.002)
        assert float(stored.norm() / update.norm()) == pytest.approx(growth, rel=0.005)
