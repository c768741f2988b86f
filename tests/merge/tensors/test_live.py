"""A splice made in memory against the written one, loaded: parameters, buffers, settings and replies, in any order."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.recipes.plan import make_plan
from merge.recipes.recipe import Blend, Owner, Recipe
from merge.splice import write_splice
from merge.tensors.live import LiveSplicer, live_splices
from models.blocks import REGIONS
from models.checkpoint import open_checkpoint
from models.families import QWEN2_5_VL, QWEN2_VL, Family
from models.loading import load_model
from models.pocket import PocketShape, write_pocket_checkpoint
from models.shards import write_safetensors

FAMILIES = ("pocket", "untied", "qwen2", "qwen2_vl", "qwen3_vl")
HALFWAY = Blend(start="in", end="rl", alpha=0.5)
EXTRAPOLATED = Blend(start="in", end="rl", alpha=1.25, onto="third")


def hub_name(name: str, family: Family) -> str:
    if family not in (QWEN2_VL, QWEN2_5_VL):  # the others stand there as in memory
        return name
    return re.sub(r"^model\.(language_model|visual)\.", lambda m: {"visual": "visual."}.get(m[1], "model."), name)


def redrawn(checkpoint: Path, directory: Path, *, seed: int) -> Path:
    """Writes a checkpoint like another, every weight moved at random, as the hub spells the family's names."""
    shutil.copytree(checkpoint, directory)
    opened = open_checkpoint(checkpoint)
    generator = torch.Generator().manual_seed(seed)

    def data(name_on_disk: str) -> bytes:
        values = opened.tensor(opened.family.canonical(name_on_disk))
        drawn = values + 0.05 * torch.randn(values.shape, generator=generator).to(values.dtype)
        return drawn.flatten().view(torch.uint8).numpy().tobytes()

    for file in checkpoint.glob("*.safetensors"):
        stored = [tensor for tensor in opened.tensors.values() if tensor.file == file]
        entries = [(hub_name(tensor.name_on_disk, opened.family), tensor.dtype, tensor.shape) for tensor in stored]
        write_safetensors(directory / file.name, entries, data)
    return directory


def resaved(checkpoint: Path, directory: Path) -> Path:
    """Writes the same checkpoint in shards, as Transformers spells it."""
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    load_model(checkpoint).save_pretrained(directory, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


@pytest.fixture(scope="session")
def donors_of_family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """Three donors of a family, the second of them sharded; made when first asked for."""
    made: dict[str, dict[str, str]] = {}

    def make(family: str) -> dict[str, str]:
        root = tmp_path_factory.mktemp(family)
        if family == "untied":
            start = root / "in"
            write_pocket_checkpoint(start, shape=PocketShape(tie_embeddings=False), seed=0)
        else:
            start = request.getfixturevalue(f"{family}_checkpoint")
        rl = resaved(redrawn(start, root / "whole", seed=1), root / "rl")
        return {"in": str(start), "rl": str(rl), "third": str(redrawn(start, root / "third", seed=2))}

    def donors(family: str) -> dict[str, str]:
        if family not in made:
            made[family] = make(family)
        return dict(made[family])

    return donors


def recipe_of(
    donors: dict[str, str], early: Owner, mid: Owner, late: Owner, rest: Owner = "in", files: str = "in"
) -> Recipe:
    return Recipe(
        donors=donors,
        blocks={"early": early, "mid": mid, "late": late},
        rest=dict.fromkeys(REGIONS, rest),
        files=files,
    )


def recipes(donors: dict[str, str]) -> list[Recipe]:
    """Patterns, a transplant onto a third, interpolated embeddings, one layer and a part of layers of their own."""
    pair = {name: donors[name] for name in ("in", "rl")}
    narrowed = Recipe(
        donors=donors,
        blocks={"llm.attn": "rl", "early.mlp": "in", "mid.mlp": HALFWAY, "late.mlp": "third"},
        rest=dict.fromkeys(REGIONS, "third"),
    )
    return [
        recipe_of(pair, "in", "rl", "rl"),
        recipe_of(donors, "in", EXTRAPOLATED, "rl"),
        recipe_of(pair, "rl", "in", "in", rest="rl"),
        narrowed,
        recipe_of(pair, "in", HALFWAY, "rl", rest=HALFWAY),
        recipe_of({"in": donors["in"]}, "in", "in", "in"),
        recipe_of({"third": donors["third"], "in": donors["in"]}, "in", "in", "third", files="third"),
        recipe_of(pair, "in", "rl", "rl"),
    ]


def written(recipe: Recipe, directory: Path) -> Path:
    return write_splice(make_plan(recipe), directory, max_shard_bytes=None)


def reply(model: Any) -> list[int]:
    """Greedy tokens after a fixed text prompt."""
    prompt = torch.tensor([[20, 21, 22, 23, 24]])
    with torch.inference_mode():
        output: list[int] = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=6
        )[0].tolist()
    return output


def assert_same(live: Any, loaded: Any) -> None:
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (live, loaded))
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name
    assert live.config.to_dict() | {"_name_or_path": ""} == loaded.config.to_dict() | {"_name_or_path": ""}
    assert live.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert live.training is loaded.training is False
    assert reply(live) == reply(loaded)


def hashes(donors: dict[str, str]) -> dict[Path, str]:
    files = [file for folder in donors.values() for file in sorted(Path(folder).iterdir())]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.cases_slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_splice_equals_the_written_one(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path, family: str
) -> None:
    donors = donors_of_family(family)
    before = hashes(donors)
    replies = []
    for number, (recipe, model) in enumerate(live_splices(recipes(donors))):
        assert_same(model, load_model(written(recipe, tmp_path / str(number))))
        replies.append(tuple(reply(model)))
    assert number == 7
    assert replies[0] == replies[7]
    assert len(set(replies)) > 3  # the donors differ enough to be told apart
    assert hashes(donors) == before


def test_only_tensors_whose_source_changes_are_copied(donors_of_family: Callable[[str], dict[str, str]]) -> None:
    donors = donors_of_family("pocket")
    pair = {name: donors[name] for name in ("in", "rl")}
    splicer = LiveSplicer()
    model = splicer.splice(recipe_of(pair, "in", "rl", "rl"))
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    def changed_by(recipe: Recipe) -> set[str]:
        before = {name: parameter._version for name, parameter in model.named_parameters()}
        assert splicer.splice(recipe) is model
        return {name for name, parameter in model.named_parameters() if parameter._version != before[name]}

    def layers(*numbers: int) -> set[str]:
        prefixes = tuple(f"model.language_model.layers.{number}." for number in numbers)
        return {name for name in places if name.startswith(prefixes)}

    assert changed_by(recipe_of(pair, "in", "rl", "rl")) == set()
    assert changed_by(recipe_of(pair, "in", "rl", "in")) == layers(4, 5)
    assert changed_by(recipe_of(pair, "rl", HALFWAY, "in")) == layers(0, 1, 2, 3)
    assert changed_by(recipe_of(pair, "rl", HALFWAY, Blend(start="in", end="rl", alpha=0.25))) == layers(4, 5)
    assert changed_by(recipe_of(pair, "rl", HALFWAY, HALFWAY)) == layers(4, 5)
    renamed = Blend(start="sft", end="final", alpha=0.5)
    other_names = {"sft": pair["in"], "final": pair["rl"]}
    recipe = recipe_of(other_names, "final", renamed, renamed, rest="sft", files="sft")
    assert changed_by(recipe) == set()
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places


@pytest.mark.slow
def test_the_order_of_the_splices_does_not_matter(donors_of_family: Callable[[str], dict[str, str]]) -> None:
    donors = donors_of_family("qwen3_vl")
    asked = recipes(donors)
    alone = [{n: p.detach().clone() for n, p in LiveSplicer().splice(r).named_parameters()} for r in asked]
    splicer = LiveSplicer()
    for number in (7, 3, 1, 4, 0, 5, 2, 3, 6, 2, 1):
        for name, parameter in splicer.splice(asked[number]).named_parameters():
            assert torch.equal(parameter, alone[number][name]), (number, name)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_weights_are_held_in_the_dtype_asked_for(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path, dtype: str
) -> None:
    recipe = recipe_of(donors_of_family("qwen2"), "in", HALFWAY, "third")
    checkpoint = written(recipe, tmp_path / "splice")
    live = LiveSplicer(dtype=dtype, attn_implementation="eager").splice(recipe)
    assert_same(live, load_model(checkpoint, dtype=dtype, attn_implementation="eager"))


def bf16_copy(checkpoint: Path, directory: Path) -> Path:
    """Writes a checkpoint in bf16, under a configuration that names no dtype."""
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    load_model(checkpoint, dtype=torch.bfloat16).save_pretrained(directory)
    drop_dtype(directory)
    return directory


def drop_dtype(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("dtype", None)
    (directory / "config.json").write_text(json.dumps(config))


def test_without_a_dtype_in_the_configuration_that_of_the_weights_counts(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    fp32 = donors_of_family("pocket")
    donors = {name: str(bf16_copy(Path(fp32[name]), tmp_path / name)) for name in ("in", "rl")}
    files = shutil.copytree(fp32["in"], tmp_path / "files")
    drop_dtype(files)
    donors["files"] = str(files)  # fp32, and owns nothing
    recipe = recipe_of(donors, "in", HALFWAY, "rl", files="files")
    live = LiveSplicer().splice(recipe)
    assert {parameter.dtype for parameter in live.parameters()} == {torch.bfloat16}
    assert_same(live, load_model(written(recipe, tmp_path / "splice")))


@pytest.mark.slow
def test_configuration_and_generation_settings_are_those_of_the_files_donor(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    donors = donors_of_family("qwen2")
    rl = Path(shutil.copytree(donors["rl"], tmp_path / "rl"))
    config = json.loads((rl / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (rl / "config.json").write_text(json.dumps(config))
    settings = json.loads((rl / "generation_config.json").read_text())
    (rl / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))
    donors = {"in": donors["in"], "rl": str(rl)}
    splicer = LiveSplicer()
    for number, files in enumerate(("in", "rl", "in")):
        recipe = recipe_of(donors, "in", "rl", "in", files=files)
        model = splicer.splice(recipe)
        assert model.generation_config.repetition_penalty == (1.3 if files == "rl" else None)
        assert_same(model, load_model(written(recipe, tmp_path / str(number))))


def test_what_an_evaluation_sets_is_gone_at_the_next_splice(donors_of_family: Callable[[str], dict[str, str]]) -> None:
    donors = donors_of_family("pocket")
    splicer = LiveSplicer()
    model = splicer.splice(recipe_of(donors, "in", "rl", "third"))
    declared = model.generation_config.to_dict()
    model.generation_config.eos_token_id = [1, 2, 3]
    model.train()
    model = splicer.splice(recipe_of(donors, "in", "third", "rl"))
    assert model.generation_config.to_dict() == declared
    assert not any(module.training for module in model.modules())


def test_after_a_blend_that_fails_the_next_splice_is_right(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    donors = donors_of_family("pocket")
    splicer = LiveSplicer()
    splicer.splice(recipe_of(donors, "in", "third", "rl"))
    beyond = Blend(start="in", end="rl", alpha=1e45)
    with pytest.raises(ValueError, match=r"'model\.language_model\.layers\.2\.\S+'.* is (inf|-inf|nan) at element"):
        splicer.splice(recipe_of(donors, "rl", beyond, "third"))
    recipe = recipe_of(donors, "in", "third", "rl")
    assert_same(splicer.splice(recipe), load_model(written(recipe, tmp_path / "splice")))


def test_a_configuration_of_other_tensors_is_refused(
    donors_of_family: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    donors = donors_of_family("qwen3_vl")
    rl = Path(shutil.copytree(donors["rl"], tmp_path / "rl"))
    config = json.loads((rl / "config.json").read_text())
    config["vision_config"]["deepstack_visual_indexes"] = [0]
    (rl / "config.json").write_text(json.dumps(config))
    recipe = recipe_of({"in": donors["in"], "rl": str(rl)}, "in", "rl", "rl", files="rl")
    with pytest.raises(ValueError, match=r"config\.json describes knows no 'model\.visual\.deepstack_merger_list\.1\."):
        LiveSplicer().splice(recipe)
