"""The streamed pass against closed forms and NumPy in fp64, whatever the dtypes, chunks and threads."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyze.deltas import change
from analyze.deltas.change import Comparison, measure_change, measure_many
from analyze.deltas.floor import ULP_LABELS
from analyze.deltas.sums import TensorChange
from models.checkpoint import WEIGHTS_FILE, Checkpoint, open_checkpoint
from models.shards import write_safetensors

SPELLED = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = pytest.mark.parametrize("dtype", SPELLED, ids=SPELLED.values())
NAME = "model.norm.weight"
OTHER_NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.input_layernorm.weight",
)


def store(directory: Path, *tensors: torch.Tensor) -> Checkpoint:
    """Opens a text-only checkpoint of these tensors, the first of them under NAME."""
    named = dict(zip((NAME, *OTHER_NAMES), tensors, strict=False))
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2", "tie_word_embeddings": True}))
    entries = [(name, SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in named.items()]
    write_safetensors(
        directory / WEIGHTS_FILE, entries, lambda name: named[name].flatten().view(torch.uint8).numpy().tobytes()
    )
    return open_checkpoint(directory)


def compare(tmp_path: Path, *tensors: torch.Tensor, floor: bool = True, pairs: bool = False) -> TensorChange:
    """Measures each tensor against the first, and where asked the first two phases against each other."""
    checkpoints = [store(tmp_path / str(number), tensor) for number, tensor in enumerate(tensors)]
    phases = [(0, number) for number in range(1, len(tensors))]
    return measure_change(
        Comparison(checkpoints=checkpoints, phases=phases, pairs=[(0, 1)] if pairs else [], floor=floor), NAME
    )


def random(num_elements: int, dtype: torch.dtype, *, seed: int, std: float = 0.02) -> torch.Tensor:
    return (torch.randn(num_elements, generator=torch.Generator().manual_seed(seed)) * std).to(dtype)


def ulps(**counts: int) -> tuple[int, ...]:
    """Returns a histogram with these bins filled, by labels such as `bin_3_4`."""
    named = {label.removeprefix("bin_").replace("_", "-"): number for label, number in counts.items()}
    assert set(named) <= set(ULP_LABELS)
    return tuple(named.get(label, 0) for label in ULP_LABELS)


def as_fp64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@DTYPES
def test_the_sums_are_numpys_in_fp64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(change, "CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(change, "PIECE_ELEMENTS", 3000)
    start, one = random(10_007, dtype, seed=0), random(10_007, dtype, seed=1)
    other = torch.where(random(10_007, torch.float32, seed=2) > 0, start, one)
    result = compare(tmp_path, start, one, other, pairs=True)
    deltas = [as_fp64(end) - as_fp64(start) for end in (one, other)]
    for measured, delta in zip(result.phases, deltas, strict=True):
        assert measured.num_elements == 10_007
        assert measured.num_changed == np.count_nonzero(delta)
        assert measured.delta_squares == pytest.approx(np.dot(delta, delta), rel=1e-13)
        assert measured.start_squares == pytest.approx(np.dot(as_fp64(start), as_fp64(start)), rel=1e-13)
        assert measured.max_change == np.abs(delta).max()
        assert measured.ulps_histogram is not None
        assert sum(measured.ulps_histogram) == 10_007
    (pair,) = result.pairs
    assert pair.num_both_changed == np.count_nonzero(deltas[0] * deltas[1])
    assert pair.cosine == pytest.approx(deltas[0] @ deltas[1] / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1]))


@DTYPES
def test_no_change_is_exactly_zero(tmp_path: Path, dtype: torch.dtype) -> None:
    start = random(5000, dtype, seed=0)
    result = compare(tmp_path, start, start, start, pairs=True)
    for phase in result.phases:
        assert (phase.num_changed, phase.delta_squares, phase.max_change, phase.changed_ulp_squares) == (0, 0, 0, 0)
        assert phase.ulps_histogram == ulps(bin_0=5000)
    assert result.pairs[0].dot_product == 0
    assert result.pairs[0].cosine is None
    assert result.pairs[0].jaccard is None


def test_uncounted_sums_are_those_of_a_counted_pass(tmp_path: Path) -> None:
    checkpoints = [store(tmp_path / str(seed), random(5000, torch.bfloat16, seed=seed)) for seed in range(2)]
    checkpoints.append(checkpoints[0])
    phases = [(0, 1), (0, 2)]
    counted, plain = (
        measure_change(Comparison(checkpoints=checkpoints, phases=phases, floor=False, counts=counts), NAME)
        for counts in (True, False)
    )
    changed = checkpoints[0].view(NAME) != checkpoints[1].view(NAME)
    assert [phase.num_changed for phase in counted.phases] == [int(changed.sum()), 0]
    assert plain.phases == tuple(replace(phase, num_changed=None) for phase in counted.phases)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 7), (torch.float16, 10), (torch.float32, 23)])
def test_one_bit_of_one_element_is_one_ulp(tmp_path: Path, dtype: torch.dtype, digits: int) -> None:
    start = torch.full((1000,), 3.0, dtype=dtype)
    end = start.clone()
    end[777] += 2.0 ** (1 - digits)  # 3 lies between 2 and 4
    (phase,) = compare(tmp_path, start, end).phases
    ulp_squares = 4.0 ** (1 - digits)
    assert phase.num_changed == 1
    assert phase.delta_squares == ulp_squares
    assert phase.changed_ulp_squares == ulp_squares
    assert phase.rounding_squares == pytest.approx(1000 * ulp_squares / 12, rel=1e-15)
    assert phase.ulps_histogram == ulps(bin_0=999, bin_1=1)


@pytest.mark.parametrize(
    ("dtype", "least", "least_normal"), [(torch.bfloat16, -133, -126), (torch.float16, -24, -14)], ids=["BF16", "F16"]
)
def test_ulps_at_zero_powers_of_two_and_below_the_normal_numbers(
    tmp_path: Path, dtype: torch.dtype, least: int, least_normal: int
) -> None:
    digits = least_normal - least
    exponents = [0, 1, -1, 5, -5, least_normal, least_normal + 1, least, least + 2]
    start = torch.tensor([0.0, -0.0, *(2.0**exponent for exponent in exponents), -1.5], dtype=torch.float64).to(dtype)
    expected = [least, least, *(max(exponent - digits, least) for exponent in exponents), -digits]
    (phase,) = compare(tmp_path, start, start).phases
    assert phase.rounding_squares == math.fsum(4.0**exponent for exponent in expected) / 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["BF16", "F16"])
def test_steps_are_counted_in_numbers_between_whatever_the_signs(tmp_path: Path, dtype: torch.dtype) -> None:
    def number(step: int) -> int:
        """The bits of the number so many steps above zero."""
        return step if step >= 0 else -step - 2**15

    steps = [
        (0, 1),
        (-1, 0),
        (-1, 1),
        (100, 104),
        (-104, -100),
        (-3, 5),
        (7, 7),
        (300, -300),
        (-20_000, 20_000),
        (9, 0),
    ]
    bits = torch.tensor(steps).apply_(number).to(torch.int16)
    start, end = (bits[:, side].contiguous().view(dtype) for side in (0, 1))
    (phase,) = compare(tmp_path, start, end).phases
    assert phase.ulps_histogram == ulps(
        bin_0=1, bin_1=2, bin_2=1, bin_3_4=2, bin_5_8=1, bin_9_16=1, **{"bin_513_1024": 1, "bin_>1024": 1}
    )


def test_a_sign_of_zero_is_a_changed_element_of_no_size(tmp_path: Path) -> None:
    start = torch.zeros(10, dtype=torch.bfloat16)
    (phase,) = compare(tmp_path, start, -start).phases
    assert (phase.num_changed, phase.delta_squares) == (10, 0)
    assert phase.ulps_histogram == ulps(bin_0=10)


@pytest.mark.parametrize(("first", "second"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_between_dtypes_values_are_compared_in_the_coarser_ones_ulps(
    tmp_path: Path, first: torch.dtype, second: torch.dtype
) -> None:
    start = torch.tensor([1.0, 1.5, 2.0, 3.0, 1.0]).to(first)
    end = torch.tensor([1.0, 1.5 + 2**-7, 2.0 - 2**-6, 3.0, 1 + 5 * 2**-7]).to(second)
    (phase,) = compare(tmp_path, start, end).phases
    assert phase.num_changed == 3
    assert phase.delta_squares == 4.0**-7 + 4.0**-6 + 25 * 4.0**-7
    assert phase.rounding_squares == pytest.approx((3 * 4.0**-7 + 2 * 4.0**-6) / 12, rel=1e-15)
    assert phase.ulps_histogram == ulps(bin_0=2, bin_1=2, bin_5_8=1)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (255,), (256,), (257,)])
def test_every_length_is_measured_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    start = torch.ones(shape, dtype=torch.bfloat16)
    (phase,) = compare(tmp_path, start, start * 3).phases
    number = math.prod(shape)
    assert (phase.num_elements, phase.num_changed) == (number, number)
    assert (phase.delta_squares, phase.start_squares) == (4 * number, number)
    assert phase.rounding_squares == pytest.approx(number * 4.0**-7 / 12)


def test_checkpoints_in_a_chain_share_their_reading(tmp_path: Path) -> None:
    tensors = [random(3000, torch.bfloat16, seed=seed) for seed in range(4)]
    checkpoints = [store(tmp_path / str(number), tensor) for number, tensor in enumerate(tensors)]
    phases = [(1, 0), (0, 2), (0, 3), (2, 3)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    result = measure_change(Comparison(checkpoints=checkpoints, phases=phases, pairs=pairs), NAME)
    deltas = [as_fp64(tensors[end]) - as_fp64(tensors[start]) for start, end in phases]
    for measured, delta in zip(result.phases, deltas, strict=True):
        assert measured.delta_squares == pytest.approx(delta @ delta, rel=1e-13)
    for measured_pair, (first, second) in zip(result.pairs, pairs, strict=True):
        assert measured_pair.dot_product == pytest.approx(deltas[first] @ deltas[second], rel=1e-10)


def test_overlap_stands_beside_what_independent_phases_would_share(tmp_path: Path) -> None:
    start = torch.ones(1000, dtype=torch.bfloat16)
    one, other = start.clone(), start.clone()
    one[:400] = 2
    other[300:500] = 2
    (pair,) = compare(tmp_path, start, one, other, pairs=True).pairs
    assert (pair.num_first_changed, pair.num_second_changed, pair.num_both_changed) == (400, 200, 100)
    assert pair.jaccard == 100 / 500
    assert pair.independent_jaccard == pytest.approx(80 / 520)
    assert pair.cosine == pytest.approx(100 / math.sqrt(400 * 200))


def many(checkpoints: Sequence[Checkpoint], num_threads: int) -> list[TensorChange]:
    names = list(checkpoints[0].tensors)
    comparison = Comparison(checkpoints=checkpoints, phases=[(0, 1), (0, 2)], pairs=[(0, 1)])
    return list(measure_many(comparison, names, num_threads=num_threads))


def test_results_are_equal_to_the_bit_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change, "CHUNK_ELEMENTS", 512)
    monkeypatch.setattr(change, "PIECE_ELEMENTS", 1024)
    sizes = (10_007, 1, 30_000, 1024)
    checkpoints = [
        store(tmp_path / str(seed), *(random(size, torch.bfloat16, seed=seed) for size in sizes)) for seed in range(3)
    ]
    one = many(checkpoints, 1)
    assert [tensor.name for tensor in one] == list(checkpoints[0].tensors)
    assert many(checkpoints, 2) == one
    assert many(checkpoints, 5) == one


def test_torch_has_its_threads_back_after_a_pass_that_is_given_up(tmp_path: Path) -> None:
    checkpoints = [store(tmp_path / str(seed), random(2000, torch.bfloat16, seed=seed)) for seed in range(2)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    results = measure_many(Comparison(checkpoints=checkpoints, phases=[(0, 1)]), [NAME, NAME], num_threads=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    number = torch.get_num_threads()
    torch.set_num_threads(before)
    assert number == 3


@DTYPES
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["start", "end", "both"])
def test_values_that_are_not_finite_are_refused_by_file_and_tensor(
    tmp_path: Path, dtype: torch.dtype, value: float, side: str
) -> None:
    tensors = [random(3000, dtype, seed=0), random(3000, dtype, seed=1)]
    for number, name in enumerate(("start", "end")):
        if side in (name, "both"):
            tensors[number][1500:1502] = value
    damaged = 1 if side == "end" else 0
    with pytest.raises(ValueError, match=rf"/{damaged}/{WEIGHTS_FILE}.*{NAME}.*2 values of 3000"):
        compare(tmp_path, *tensors, floor=False)


@pytest.mark.gpu
def test_a_gpu_measures_what_the_cpu_measures(tmp_path: Path) -> None:
    tensors = [random(300_001, torch.bfloat16, seed=seed) for seed in range(3)]
    checkpoints = [store(tmp_path / str(number), tensor) for number, tensor in enumerate(tensors)]
    results = [
        measure_change(
            Comparison(checkpoints=checkpoints, phases=[(0, 1), (0, 2)], pairs=[(0, 1)], device=device), NAME
        )
        for device in ("cpu", "cuda")
    ]
    for on_cpu, on_gpu in zip(results[0].phases, results[1].phases, strict=True):
        assert on_gpu.delta_squares == pytest.approx(on_cpu.delta_squares, rel=1e-12)
        assert on_gpu.changed_ulp_squares == pytest.approx(on_cpu.changed_ulp_squares, rel=1e-12)
        assert (on_gpu.num_changed, on_gpu.ulps_histogram) == (on_cpu.num_changed, on_cpu.ulps_histogram)
    assert results[1].pairs[0].cosine == pytest.approx(results[0].pairs[0].cosine, abs=1e-12)
