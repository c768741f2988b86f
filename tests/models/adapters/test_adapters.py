"""PEFT's folders are read as PEFT reads them, and refused in one line where PEFT would go wrong in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.changes import low_rank_change
from models.adapters.loading import load_merged
from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import check_model, open_model
from models.adapters.reading import LowRank, read_adapter
from models.checkpoint import open_checkpoint
from models.pocket import write_pocket_checkpoint
from tests.merge.donors import narrow
from tests.models.adapters.making import WEIGHTS, edit_config, edit_tensors, merged_by_peft, rename, write_adapter

PREFIX = "base_model.model.model.language_model.layers."
OLD = ("base_model.model.model.language_model.", "base_model.model.model.")
"""The decoder's spelling in memory, and that of Transformers 4.51."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied and an untied narrow model of three layers, in fp32."""
    root = tmp_path_factory.mktemp("bases")
    for name, tied in (("tied", True), ("untied", False)):
        write_pocket_checkpoint(root / name, shape=narrow(3, tied=tied), seed=0)
    return {name: root / name for name in ("tied", "untied")}


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(bases["tied"], tmp_path_factory.mktemp("adapters") / "plain")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain adapter, to be damaged."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("tied", {}),
    "patterns": (
        "tied",
        {
            "use_rslora": True, "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2}, "alpha_pattern": {"down_proj": 3},
            "lora_bias": False, "fan_in_fan_out": True,
        },
    ),
    "tower": ("tied", {"target_modules": ["qkv", "proj", "mlp.0"], "r": 3}),
    "layers": ("tied", {"layers_to_transform": [0, 2], "layers_pattern": "layers", "exclude_modules": ["up_proj"]}),
    "dora": ("tied", {"use_dora": True}),
    "embeddings": ("untied", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "saved": ("untied", {"modules_to_save": ["lm_head", "norm"], "bias": "lora_only"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_elements", [None, 512])
@pytest.mark.cases_slow
def test_a_merge_in_fp32_is_peft_s_bit_for_bit(
    bases: dict[str, Path], tmp_path: Path, kind: str, block_elements: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block_elements is not None:  # matrices of 32 × 32 and more
        monkeypatch.setattr("models.adapters.merged.BLOCK_ELEMENTS", block_elements)
    name, options = KINDS[kind]
    directory = write_adapter(bases[name], tmp_path / kind, **options)
    merged, expected = open_model(str(directory)), merged_by_peft(bases[name], directory)
    assert isinstance(merged, MergedCheckpoint) and merged.adapter.updates
    kernels = [parameter for parameter, tensor in expected.items() if tensor.ndim > 2]
    for parameter, tensor in expected.items():
        if parameter in kernels:  # PEFT multiplies the factors of a kernel by a convolution
            assert torch.allclose(merged.tensor(parameter), tensor, rtol=0, atol=1e-6)
        else:
            assert torch.equal(merged.tensor(parameter), tensor), parameter
        moved = not torch.equal(tensor, merged.base.tensor(parameter))
        assert moved == (parameter in merged.adapter.updates), parameter
    assert (kind == "tower") == any(parameter in merged.adapter.updates for parameter in kernels)
    loaded = dict(load_merged(merged).named_parameters())
    assert all(torch.equal(loaded[parameter], merged.tensor(parameter)) for parameter in merged.tensors)


FAMILIES = ("qwen3_5", "internvl", "qwen3_vl", "qwen2_vl", "qwen3", "qwen2", "mixed")


@pytest.mark.cases_slow
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_every_family_are_merged_as_by_peft(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On every linear map but the head; `mixed` has fp32 tensors among bf16."""
    base: Path = request.getfixturevalue(f"{family}_checkpoint")
    directory = write_adapter(base, tmp_path / "adapter", target_modules="all-linear", std=0.01)
    merged, expected = open_model(str(directory)), merged_by_peft(base, directory)
    assert isinstance(merged, MergedCheckpoint)
    places = {merged.family.place(name)[0] for name in merged.adapter.updates}
    assert places >= ({"llm"} if merged.family.text_only else {"llm", "vision", "projector"})
    for name in merged.adapter.updates:
        assert torch.equal(merged.tensor(name), expected[name]) or merged.tensor(name).ndim > 2, name
        assert merged.tensors[name].dtype == merged.base.tensors[name].dtype
    loaded = dict(load_merged(merged).named_parameters())
    assert all(torch.equal(loaded[name], merged.tensor(name)) for name in loaded)


def test_the_exact_change_is_the_factors_product(bases: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("patterns", "tower", "embeddings"):
        name, options = KINDS[kind]
        directory = write_adapter(bases[name], tmp_path / kind, **options)
        base, merged = open_checkpoint(bases[name]), open_model(str(directory))
        assert isinstance(merged, MergedCheckpoint)
        for parameter, stored in base.tensors.items():
            change = low_rank_change(base, merged, parameter)
            assert change is not None and change.rank == (4 if kind == "embeddings" else change.rank) * (
                parameter in merged.adapter.updates
            )
            whole = change.elements(0, stored.num_bytes // 4).reshape(stored.shape)
            added = merged.tensor(parameter).double() - base.tensor(parameter).double()
            assert torch.allclose(whole, added, rtol=0, atol=1e-6)
            assert torch.allclose(change.elements(5, 23), whole.flatten()[5:23], rtol=1e-12, atol=1e-18)
        assert low_rank_change(merged, merged, parameter).rank == 0  # type: ignore[union-attr]


def test_two_adapters_of_one_base_differ_by_both_factors(bases: dict[str, Path], plain: Path, tmp_path: Path) -> None:
    other = write_adapter(bases["tied"], tmp_path / "other", seed=1, r=2)
    one, two = open_model(str(plain)), open_model(str(other))
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    change = low_rank_change(one, two, name)
    assert change is not None and change.rank == 6
    expected = two.tensor(name).double() - one.tensor(name).double()
    assert torch.allclose(change.elements(0, expected.numel()).reshape(expected.shape), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spelling", ["old", "default", "bare"])
def test_other_spellings_of_the_names_are_the_same_adapter(
    bases: dict[str, Path], plain: Path, adapter: Path, spelling: str
) -> None:
    changes = {"old": OLD, "default": (".weight", ".default.weight"), "bare": ("base_model.model.", "")}
    rename(adapter, *changes[spelling])
    before, after = (open_model(str(folder)) for folder in (plain, adapter))
    assert isinstance(before, MergedCheckpoint) and isinstance(after, MergedCheckpoint)
    assert set(before.adapter.updates) == set(after.adapter.updates)
    assert all(before.sha256(name) == after.sha256(name) for name in before.tensors)
    assert before.fingerprint() != before.base.fingerprint()


def test_bf16_weights_are_rounded_once(bases: dict[str, Path], tmp_path: Path) -> None:
    from models.loading import load_model

    load_model(bases["tied"], dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    directory = write_adapter(tmp_path / "base", tmp_path / "adapter", dtype=torch.bfloat16)
    merged = open_model(str(directory))
    assert isinstance(merged, MergedCheckpoint)
    differs = 0
    peft = merged_by_peft(tmp_path / "base", directory)
    safely = merged_by_peft(tmp_path / "base", directory, safe_merge=True)
    for name, update in merged.adapter.updates.items():
        assert isinstance(update, LowRank)
        up, down = update.factors(torch.float64)
        exact = merged.base.tensor(name).double() + update.scale * up @ down
        error = (merged.tensor(name).double() - exact).abs()
        assert merged.tensor(name).dtype == torch.bfloat16
        assert (error <= exact.abs() * 2**-8 + 1e-7).all()
        assert torch.equal(merged.tensor(name), peft[name])
        differs += int(((safely[name].double() - exact).abs() > error + 1e-7).sum())
    assert differs  # with safe_merge, PEFT rounds the product, and then the sum


def test_an_adapter_that_no_training_moved_is_zero(bases: dict[str, Path], tmp_path: Path) -> None:
    directory = write_adapter(bases["tied"], tmp_path / "zero", std=0.0)
    base, merged = open_checkpoint(bases["tied"]), open_model(str(directory))
    assert isinstance(merged, MergedCheckpoint)
    for name, update in merged.adapter.updates.items():
        assert isinstance(update, LowRank) and update.is_zero()
        change = low_rank_change(base, merged, name)
        assert change is not None and change.rank == 0 and merged.sha256(name) == base.sha256(name)


def drop(*parts: str) -> Callable[[Path], None]:
    """Returns a damage that removes the tensors whose names hold one of these."""
    return lambda folder: edit_tensors(
        folder, lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}
    )


def replaced(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(
        folder, lambda tensors: {name: change(t) if part in name else t for name, t in tensors.items()}
    )


def configured(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **values)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "ia3": (configured(peft_type="IA3"), "peft_type is 'IA3'; only LoRA adapters are read"),
    "prompt": (configured(peft_type="PROMPT_TUNING"), "peft_type is 'PROMPT_TUNING'"),
    "adalora": (configured(peft_type="ADALORA"), "peft_type is 'ADALORA'"),
    "pissa": (configured(init_lora_weights="pissa_niter_4"), "changed the base weights too"),
    "tokens": (configured(trainable_token_indices=[1]), r"trainable_token_indices is \[1\], which is not read"),
    "no rank": (configured(r=None), "r is None and lora_alpha is 8"),
    "other rank": (configured(r=8), "has rank 4; adapter_config.json says 8"),
    "untargeted": (configured(target_modules=["q_proj"]), "do not name .*down_proj'; PEFT would ignore it"),
    "other layers": (configured(layers_to_transform=[0]), "do not name '.*layers.1.mlp.down_proj'"),
    "no magnitude": (configured(use_dora=True), "has no lora_magnitude_vector; .* says use_dora True"),
    "lacking module": (configured(modules_to_save=["lm_head"]), "holds no tensor of 'lm_head', which modules_to_save"),
    "no base": (configured(base_model_name_or_path=None), "names no base_model_name_or_path; name it with --base"),
    "base gone": (configured(base_model_name_or_path="gone/at/all"), "its base model is not here .*--base"),
    "half": (drop(".0.self_attn.q_proj.lora_A"), "has no other half; expected the factors A and B of"),
    "nothing": (lambda folder: rename(folder, "self_attn.q_proj", "attention.query"), "changes .*does not have"),
    "empty": (drop("lora_"), "contains no tensors; it was saved without its weights"),
    "shape": (replaced("2.mlp.down_proj.lora_B", lambda t: t[:-1]), "has the shape .*; expected .* is that the base"),
    "ungathered": (replaced("1.mlp.down_proj.lora_A", lambda t: t[:0]), "gather the parameters before saving"),
    "infinite": (replaced("0.mlp.down_proj.lora_A", lambda t: t / 0), "holds NaN or infinite values; expected finite"),
    "integers": (replaced("0.mlp.down_proj.lora_A", lambda t: t.int()), "is I32; expected one of F64"),
    "pickled": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        r"holds pickled weights of an adapter \(adapter_model.bin\).* merge it into",
    ),
    "gone": (lambda folder: (folder / WEIGHTS).unlink(), "safetensors does not exist; expected the weights"),
    "dangling": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("nowhere")),
        "is a link to nowhere, which does not exist",
    ),
    "a folder": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()), "is a folder; expected a safetensors",
    ),
    "unbounded scale": (configured(lora_alpha=float("inf")), "lora_alpha is inf; expected .* finite number"),
    "infinite beside zero": (
        lambda folder: (
            replaced("1.mlp.down_proj.lora_A", lambda t: t * float("nan"))(folder),
            replaced("1.mlp.down_proj.lora_B", torch.zeros_like)(folder),
        ),
        "layers.1.mlp.down_proj.lora_A.weight' holds NaN or infinite",
    ),
    "beyond fp32": (
        replaced("0.mlp.down_proj.lora_A", lambda t: t.double() * 1e300), "expected finite values in torch.float32",
    ),
    "scalar": (replaced("1.mlp.down_proj.lora_A", lambda t: t.sum()), r"has the shape \[\]; expected"),
    "folded": (
        replaced("1.mlp.down_proj.lora_A", lambda t: t.reshape(len(t), 2, -1)), r"has the shape \[4, 2, \d+\]; exp",
    ),
    "named inside": (
        lambda folder: rename(folder, ".weight", ".policy.weight"),
        r"has the name of an adapter in it \('policy'\).* save_pretrained",
    ),
    "no biases": (configured(bias="all"), "holds no tensor of '.*bias', while bias is 'all'"),
    "lost biases": (configured(bias="lora_only"), "holds no tensor of '.*q_proj.bias', while bias is 'lora_only'"),
    "more beside it": (
        lambda folder: (folder / "non_lora_state_dict.bin").touch(), "together with non_lora_state_dict.bin",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_read_right_is_refused_in_one_line(adapter: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(adapter)
    with pytest.raises(ValueError, match=message) as caught:
        merged = open_model(str(adapter))
        for parameter in merged.tensors:
            merged.data(parameter)
    assert "\n" not in str(caught.value) and str(adapter) in str(caught.value)


WRONG_OPTIONS: dict[str, list[Any]] = {
    "lora_alpha": [True, "8", None, float("nan"), 1e300, 10**400],
    "alpha_pattern": [
        {"q_proj": "16"},
        {"q_proj": None},
        {"q_proj": True},
        {"q_proj": 1e999},
        {"(": 1},
        ["q_proj"],
        "x",
    ],
    "rank_pattern": [{"q_proj": "4"}, {"q_proj": 4.0}, {"q_proj": 0}, {"(": 4}, ["q_proj"], "x"],
    "target_modules": [5, "(", {"q_proj": 1}, [1, 2]],
    "exclude_modules": [3, "*", [None]],
    "modules_to_save": [5, "lm_head", [5]],
    "layers_to_transform": ["0", ["0"], -1, True, 1.0],
    "layers_pattern": [5, "(", ["("]],
    "use_rslora": ["false", 1],
    "use_dora": ["false", 0],
    "bias": [5, "some", ["all"]],
    "base_model_name_or_path": [5, ["x"]],
    "revision": [5],
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_an_option_of_another_type_is_refused_in_one_line(adapter: Path, option: str) -> None:
    for value in WRONG_OPTIONS[option]:
        edit_config(adapter, **{option: value})
        with pytest.raises(
            ValueError, match=f"adapter_config.json: .*{option} (is|has) .*(expected|correct)"
        ) as caught:
            check_model(str(adapter))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, value


def test_the_type_is_refused_before_anything_is_loaded(adapter: Path) -> None:
    check_model(str(adapter))
    edit_config(adapter, peft_type="LOHA")
    with pytest.raises(ValueError, match="peft_type is 'LOHA'"):
        check_model(str(adapter))


def test_another_base_is_refused_by_its_shapes(adapter: Path, tmp_path: Path) -> None:
    from models.pocket import PocketShape

    write_pocket_checkpoint(tmp_path / "wide", shape=PocketShape(num_layers=3), seed=0)
    with pytest.raises(ValueError, match="is that the base it was trained on"):
        open_model(str(adapter), base=str(tmp_path / "wide"))
    write_pocket_checkpoint(tmp_path / "short", shape=narrow(2), seed=0)
    with pytest.raises(ValueError, match=r"changes '.*layers\.2\..*', which the base .*short does not have"):
        open_model(str(adapter), base=str(tmp_path / "short"))


def test_a_base_is_named_for_an_adapter_only_and_is_a_whole_model(
    bases: dict[str, Path], plain: Path, adapter: Path
) -> None:
    with pytest.raises(ValueError, match=r"is a whole model, and --base .* leave --base out"):
        open_model(str(bases["tied"]), base=str(bases["untied"]))
    with pytest.raises(ValueError, match="is an adapter itself; merge that one first"):
        open_model(str(adapter), base=str(plain))
    edit_config(adapter, base_model_name_or_path="gone/at/all")
    assert open_model(str(adapter), base=str(bases["tied"])).sha256(name := next(iter(open_model(str(plain)).tensors)))
    assert open_model(str(adapter), base=str(bases["tied"])).sha256(name) == open_model(str(plain)).sha256(name)


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}])
def test_a_merge_that_would_change_a_tied_matrix_twice_is_refused(
    bases: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    directory = write_adapter(bases["tied"], tmp_path / "adapter", **options)
    way_out = r"read by train.verify and eval.run; .* merge it into|save .*tied with a head of its own"
    with pytest.raises(ValueError, match=f"ties head and embeddings, so that merging would change both.*({way_out})"):
        open_model(str(directory))
    assert len(read_adapter(directory, open_checkpoint(bases["tied"])).updates)


def test_an_adapted_embedding_matrix_of_another_base_is_found(bases: dict[str, Path], tmp_path: Path) -> None:
    directory = write_adapter(bases["untied"], tmp_path / "adapter", target_modules=["embed_tokens"])
    edit_tensors(
        directory, lambda tensors: {n: t + 1 if n.endswith("base_layer.weight") else t for n, t in tensors.items()}
    )
    with pytest.raises(ValueError, match=r"is not 'model.language_model.embed_tokens.weight' of"):
        open_model(str(directory))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_merge_beyond_the_stored_dtype_is_refused(bases: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    from models.loading import load_model

    load_model(bases["tied"], dtype=dtype).save_pretrained(tmp_path / "base")
    half = float(torch.finfo(dtype).max) ** 0.5
    directory = write_adapter(tmp_path / "base", tmp_path / "adapter", std=half)
    edit_tensors(directory, lambda tensors: {n: 100 * half * t if "lora_A" in n else t for n, t in tensors.items()})
    merged = open_model(str(directory))
    assert isinstance(merged, MergedCheckpoint)
    with pytest.raises(ValueError, match=r"merged, '.*' has NaN or infinite values in torch\."):
        for name in merged.adapter.updates:
            merged.data(name)
