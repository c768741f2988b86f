"""Arithmetic between checkpoints against float64: rounded once, independent of chunk size; exact bytes if possible."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml

from merge.recipes.recipe import Blend
from merge.splice import main as splice
from merge.tensors.transplant import CHUNK_ELEMENTS, blend_bytes
from merge.verify import main as verify
from models.checkpoint import Checkpoint, open_checkpoint
from models.pocket import PocketShape, write_pocket_checkpoint
from models.shards import DTYPES, write_safetensors

NAME = "model.embed_tokens.weight"
MANTISSA_BITS = {"BF16": 7, "F16": 10, "F32": 23}
SMALLEST_EXPONENT = {"BF16": -126, "F16": -14, "F32": -126}


def torch_dtype(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, DTYPES[dtype][0])
    return found


def to_bytes(values: torch.Tensor) -> bytes:
    return values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def make_donors(root: Path, tensors: Mapping[str, torch.Tensor], *, dtype: str) -> dict[str, Checkpoint]:
    """Text-only checkpoints of one tensor each."""
    donors = {}
    for name, values in tensors.items():
        directory = root / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
        content = to_bytes(values.to(torch_dtype(dtype)))
        write_safetensors(
            directory / "model.safetensors", [(NAME, dtype, tuple(values.shape))], lambda _, content=content: content
        )
        donors[name] = open_checkpoint(directory)
    return donors


def blended(donors: Mapping[str, Checkpoint], blend: Blend, dtype: str, **options: int) -> torch.Tensor:
    content = b"".join(blend_bytes(donors, blend, NAME, dtype, **options))
    return torch.frombuffer(bytearray(content), dtype=torch_dtype(dtype))


def random_tensors(*, num_elements: int, spread: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(num_elements, generator=generator) * spread
    return {
        "sft": start,
        "rl": start + 0.01 * spread * torch.randn(num_elements, generator=generator),
        "base": torch.randn(num_elements, generator=generator) * spread,
    }


@pytest.fixture
def donors(tmp_path: Path) -> Callable[..., dict[str, Checkpoint]]:
    return lambda dtype, **options: make_donors(tmp_path / dtype, random_tensors(**options), dtype=dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("alpha", [0.5, 0.3, 1.7, -1.0, 1.0, 1e-3])
@pytest.mark.parametrize("onto", [None, "base"])
def test_a_blend_is_the_exact_value_rounded_once(
    donors: Callable[..., dict[str, Checkpoint]], dtype: str, alpha: float, onto: str | None
) -> None:
    opened = donors(dtype, num_elements=20_000)
    start, end, base = (opened[name].tensor(NAME).double() for name in ("sft", "rl", onto or "sft"))
    exact = base + alpha * (end - start)
    result = blended(opened, Blend(start="sft", end="rl", alpha=alpha, onto=onto), dtype)
    exponent = exact.abs().log2().floor().clamp(min=SMALLEST_EXPONENT[dtype])
    half_ulp = torch.exp2(exponent - MANTISSA_BITS[dtype] - 1)
    arithmetic = 4 * 2**-24 * torch.maximum(base.abs(), (alpha * (end - start)).abs())  # four roundings of fp32
    assert ((result.double() - exact).abs() <= half_ulp + arithmetic).all()
    if dtype != "F32":
        rounded_once = exact.to(torch_dtype(dtype))
        assert (result != rounded_once).sum() <= 5  # of 20,000: where fp32 lands on the other side of a tie


def test_the_change_is_not_rounded_before_it_is_added(tmp_path: Path) -> None:
    """0.2470703125 + 0.755859375 is nearest to 1 in bf16; with the summand rounded first it would be 1.0078125."""
    tensors = {"sft": torch.tensor([0.0]), "rl": torch.tensor([1.0078125]), "base": torch.tensor([0.2470703125])}
    opened = make_donors(tmp_path, tensors, dtype="BF16")
    rounded_first = (0.75 * opened["rl"].tensor(NAME)) + opened["base"].tensor(NAME)
    assert rounded_first.tolist() == [1.0078125]
    assert blended(opened, Blend(start="sft", end="rl", alpha=0.75, onto="base"), "BF16").tolist() == [1.0]


def test_a_result_midway_is_rounded_to_even(tmp_path: Path) -> None:
    tensors = {"sft": torch.tensor([1.0, 1.0078125]), "rl": torch.tensor([1.0078125, 1.015625])}
    opened = make_donors(tmp_path, tensors, dtype="BF16")
    assert blended(opened, Blend(start="sft", end="rl", alpha=0.5), "BF16").tolist() == [1.0, 1.015625]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_alpha_0_and_1_are_the_donors_bytes(donors: Callable[..., dict[str, Checkpoint]], dtype: str) -> None:
    opened = donors(dtype, num_elements=5_000)
    for alpha, donor in ((0.0, "sft"), (0, "sft"), (1.0, "rl"), (1, "rl")):
        for onto in (None, "sft"):
            content = b"".join(blend_bytes(opened, Blend(start="sft", end="rl", alpha=alpha, onto=onto), NAME, dtype))
            assert content == opened[donor].data(NAME)
    content = b"".join(blend_bytes(opened, Blend(start="sft", end="rl", alpha=0.0, onto="base"), NAME, dtype))
    assert content == opened["base"].data(NAME)


def test_alpha_0_and_1_keep_bits_that_arithmetic_would_not(tmp_path: Path) -> None:
    tensors = {"sft": torch.tensor([-0.0, float("inf"), 1e8, 0.0]), "rl": torch.tensor([0.0, 1.0, 1e-8, -0.0])}
    opened = make_donors(tmp_path, tensors, dtype="F32")
    for alpha, donor in ((0.0, "sft"), (1.0, "rl")):
        content = b"".join(blend_bytes(opened, Blend(start="sft", end="rl", alpha=alpha), NAME, "F32"))
        assert content == opened[donor].data(NAME)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("onto", [None, "base"])
@pytest.mark.cases_slow
def test_the_chunk_size_changes_nothing(
    donors: Callable[..., dict[str, Checkpoint]], dtype: str, onto: str | None
) -> None:
    opened = donors(dtype, num_elements=4_099)
    blend = Blend(start="sft", end="rl", alpha=0.37, onto=onto)
    whole = b"".join(blend_bytes(opened, blend, NAME, dtype))
    for size in (1, 7, 64, 1_000, 4_098, 4_099, 4_100):
        chunks = list(blend_bytes(opened, blend, NAME, dtype, chunk_elements=size))
        assert len(chunks) == -(-4_099 // size)
        assert b"".join(chunks) == whole


def test_chunks_stay_what_they_were_when_the_next_is_made(donors: Callable[..., dict[str, Checkpoint]]) -> None:
    opened = donors("BF16", num_elements=1_000)
    blend = Blend(start="sft", end="rl", alpha=0.5)
    kept = list(blend_bytes(opened, blend, NAME, "BF16", chunk_elements=100))
    copied = [bytes(chunk) for chunk in blend_bytes(opened, blend, NAME, "BF16", chunk_elements=100)]
    assert [bytes(chunk) for chunk in kept] == copied


@pytest.mark.slow
def test_a_large_tensor_is_computed_in_little_memory(donors: Callable[..., dict[str, Checkpoint]]) -> None:
    num_elements = 12 * CHUNK_ELEMENTS
    opened = donors("BF16", num_elements=num_elements)
    tracemalloc.start()
    for chunk in blend_bytes(opened, Blend(start="sft", end="rl", alpha=0.5, onto="base"), NAME, "BF16"):
        assert len(chunk) == 2 * CHUNK_ELEMENTS
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * num_elements  # Python's own part: less than the tensor once


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ({"sft": [0.0, -6e4], "rl": [0.0, 6e4]}, "F16", "is inf at element 1 in F16"),
        ({"sft": [float("nan"), 0.0], "rl": [0.0, 1.0]}, "F32", "is nan at element 0 in F32"),
        ({"sft": [0.0, float("inf")], "rl": [0.0, float("inf")]}, "BF16", "is nan at element 1 in BF16"),
    ],
)
def test_a_result_that_is_not_finite_names_the_tensor(
    tmp_path: Path, values: dict[str, list[float]], dtype: str, found: str
) -> None:
    opened = make_donors(tmp_path, {name: torch.tensor(row) for name, row in values.items()}, dtype=dtype)
    with pytest.raises(ValueError, match=rf"'{NAME}'.*sft.*rl.*{found}") as error:
        list(blend_bytes(opened, Blend(start="sft", end="rl", alpha=1.5), NAME, dtype, chunk_elements=1))
    assert "\n" not in str(error.value)


def test_whole_numbers_are_not_blended_but_may_be_copied(tmp_path: Path) -> None:
    opened = make_donors(tmp_path, {"sft": torch.tensor([1, 2]), "rl": torch.tensor([3, 4])}, dtype="I64")
    with pytest.raises(ValueError, match="holds I64, which cannot be blended; expected F64, F32, F16, BF16"):
        list(blend_bytes(opened, Blend(start="sft", end="rl", alpha=0.5), NAME, "I64"))
    assert b"".join(blend_bytes(opened, Blend(start="sft", end="rl", alpha=1.0), NAME, "I64")) == opened["rl"].data(
        NAME
    )


def test_an_empty_tensor_and_a_single_number_are_blended(tmp_path: Path) -> None:
    for name, shape in (("empty", (0, 4)), ("single", ())):
        tensors = {"sft": torch.zeros(shape), "rl": torch.ones(shape)}
        opened = make_donors(tmp_path / name, tensors, dtype="F32")
        result = b"".join(blend_bytes(opened, Blend(start="sft", end="rl", alpha=0.5), NAME, "F32"))
        assert result == to_bytes(torch.full(shape, 0.5))


def test_a_splice_holds_what_a_blend_gives_and_is_verified_by_computing_it_again(
    pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Early layers of one donor, mid ones transplanted onto a third, late ones of another, embeddings interpolated."""
    donors = {"in": str(pocket_checkpoint)}
    for seed, name in enumerate(("rl", "third"), 1):
        write_pocket_checkpoint(tmp_path / name, shape=PocketShape(), seed=seed)
        donors[name] = str(tmp_path / name)
    halfway = {"start": "in", "end": "rl", "alpha": 0.5}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "donors": donors,
                "blocks": {
                    "early": "in",
                    "mid": {"start": "in", "end": "rl", "alpha": 0.25, "onto": "third"},
                    "late": "rl",
                },
                "rest": {
                    "vision": "in",
                    "projector": "third",
                    "embed": halfway,
                    "norm": {"start": "in", "end": "rl", "alpha": 1},
                    "head": halfway,
                },
            }
        )
    )
    splice(["--recipe", str(recipe), "--output_dir", str(tmp_path / "out")])
    opened = {name: open_checkpoint(Path(path)) for name, path in donors.items()}
    written = open_checkpoint(tmp_path / "out" / "checkpoint")
    num_blended = 0
    for name in written.tensors:
        region, layer, _ = written.family.place(name)
        start, end, third = (opened[donor].tensor(name).double() for donor in ("in", "rl", "third"))
        if region == "embed" or (region == "llm" and layer in (2, 3)):
            exact = start + 0.5 * (end - start) if region == "embed" else third + 0.25 * (end - start)
            assert torch.allclose(written.tensor(name).double(), exact, rtol=2**-22, atol=1e-7), name
            num_blended += 1
        else:
            owner = "rl" if region == "norm" or (region == "llm" and layer in (4, 5)) else "in"
            assert written.data(name) == opened["third" if region == "projector" else owner].data(name), name
    assert num_blended == 1 + 2 * 12
    recorded = json.loads((tmp_path / "out" / "checkpoint" / "splice.json").read_text())["tensors"]
    for stored in written.tensors.values():
        assert recorded[stored.name_on_disk]["sha256"] == written.sha256(stored.name)
    verify([str(tmp_path / "out")])
    blended_tensor = written.tensors["model.language_model.layers.2.mlp.up_proj.weight"]
    content = bytearray(blended_tensor.file.read_bytes())
    content[blended_tensor.offset + 5] ^= 1
    blended_tensor.file.write_bytes(content)
    with pytest.raises(RuntimeError, match="BREACH"):
        verify([str(tmp_path / "out")])
    assert f"{blended_tensor.name}: its bytes are not those of third + 0.25·(rl − in)" in capsys.readouterr().out
