"""Plans of real checkpoints: who owns what, what does not fit together, how shards and files are laid out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.recipes.plan import SplicePlan, fingerprint, make_plan
from merge.recipes.recipe import Blend, Owner, Recipe
from models.checkpoint import INDEX_FILE, WEIGHTS_FILE, open_checkpoint
from tests.merge.donors import LAYER, Donors

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BLOCKS: dict[str, Owner] = {"early": "in", "mid": "rl", "late": "rl"}
REST: dict[str, Owner] = dict.fromkeys(("vision", "projector", "embed", "norm", "head"), "in")


def plan_of(
    donors: Donors,
    blocks: dict[str, Owner] = BLOCKS,
    rest: dict[str, Owner] = REST,
    *,
    paths: dict[str, Path] | None = None,
    max_shard_bytes: int | None = None,
    files: str | None = None,
    cuts: tuple[int, int] | None = None,
) -> SplicePlan:
    checkpoints = {name: str(path) for name, path in {**donors.paths, **(paths or {})}.items()}
    recipe = Recipe(donors=checkpoints, blocks=blocks, rest=rest, files=files, cuts=cuts)
    return make_plan(recipe, max_shard_bytes=max_shard_bytes)


def layers_of(plan: SplicePlan, owner: Owner) -> set[int]:
    matches = (LAYER.match(name) for name, found in plan.owners.items() if found == owner)
    return {int(match[1]) for match in matches if match}


def copy_with(start: Path, directory: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """Copies a checkpoint of one file with some tensors, by name on disk, replaced, added or left out."""
    shutil.copytree(start, directory)
    tensors = {**load_file(directory / WEIGHTS_FILE), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    return directory


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_tensor_has_the_owner_of_its_block(donors: Donors) -> None:
    plan = plan_of(donors)
    assert set(plan.owners) == set(open_checkpoint(donors.paths["rl"]).tensors)
    assert layers_of(plan, "in") == {0, 1} and layers_of(plan, "rl") == {2, 3, 4, 5}
    assert all(owner == "in" for name, owner in plan.owners.items() if not LAYER.match(name))
    assert [(part.expression, part.layers) for part in plan.parts[:3]] == [
        ("early", "0-1"), ("mid", "2-3"), ("late", "4-5")
    ]  # fmt: skip


def test_explicit_cuts_layer_ranges_and_halves_of_layers_are_followed(donors: Donors) -> None:
    assert layers_of(plan_of(donors, cuts=(1, 5)), "in") == {0}
    ranges = plan_of(donors, {"llm:0-3": "in", "llm:4": "rl", "llm:5": "in"})
    assert layers_of(ranges, "rl") == {4}
    halves = plan_of(donors, {"early": "in", "mid.attn": "in", "mid.mlp": "rl", "late": "in"})
    assert {name for name, owner in halves.owners.items() if owner == "rl"} == {
        f"model.language_model.layers.{layer}.{rest}"
        for layer in (2, 3)
        for rest in (
            "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight"
        )
    }  # fmt: skip


def test_some_blocks_of_the_tower_may_come_from_elsewhere_and_the_rest_of_it_is_said(donors: Donors) -> None:
    plan = plan_of(
        donors, {"llm": "in"}, {"vision": "in", "vision:1": "rl", **{k: REST[k] for k in REST if k != "vision"}}
    )
    taken = {name for name, owner in plan.owners.items() if owner == "rl"}
    assert taken and all(name.startswith("model.visual.blocks.1.") for name in taken)
    assert plan.owners["model.visual.patch_embed.proj.weight"] == "in"
    assert any(note.startswith("vision: what vision:1 leave") for note in plan.notes)


def test_tied_head_comes_with_the_embeddings_and_is_said(donors: Donors) -> None:
    without = {region: owner for region, owner in REST.items() if region != "head"}
    for rest in (REST, without, {**{k: v for k, v in without.items() if k != "embed"}, "head": "in"}):
        plan = plan_of(donors, rest=rest)
        assert HEAD not in plan.owners and plan.owners[EMBED] == "in"
        assert [note for note in plan.notes if note.startswith("head: embeddings are tied")]


def test_conflict_over_tied_embeddings_is_refused(donors: Donors) -> None:
    with pytest.raises(ValueError, match=r"embed and head are one tensor.* gives embed to in and head to rl"):
        plan_of(donors, rest={**REST, "head": "rl"})


def test_untied_head_has_an_owner_of_its_own(make_donors: Callable[..., Donors]) -> None:
    untied = make_donors(6, tied=False)
    plan = plan_of(untied, rest={**REST, "head": "rl"})
    assert plan.owners[HEAD] == "rl" and plan.owners[EMBED] == "in"
    with pytest.raises(ValueError, match=r"gives no owner to head \(1 tensors, the first 'lm_head\.weight'\)"):
        plan_of(untied, rest={region: owner for region, owner in REST.items() if region != "head"})


@pytest.mark.parametrize(
    ("blocks", "rest", "message"),
    [
        ({"early": "in", "late": "rl"}, REST, r"no owner to decoder layers 2-3 \(24 tensors, the first '.*layers\.2\."),
        ({**BLOCKS, "late": "rl"}, {"vision": "in"}, r"no owner to projector and embed and norm|embed"),
        ({"early": "in", "mid.mlp": "rl", "late": "rl"}, REST, "no owner to decoder layers 2-3"),
        ({**BLOCKS, "llm:3": "in"}, REST, r"layers\.3\..* has two owners, by 'mid' and by 'llm:3'"),
        ({**BLOCKS, "mid.attn": "in"}, REST, "has two owners, by 'mid' and by 'mid.attn'"),
        ({**BLOCKS, "llm:6": "in"}, REST, "'llm:6' is out of range: this model has decoder layers 0-5"),
        (BLOCKS, {**REST, "vision:9": "rl"}, "'vision:9' is out of range: this model has vision blocks 0-1"),
        ({**BLOCKS, "late.norm": "rl"}, REST, "part 'norm' is unknown; expected attn or mlp"),
    ],
)
def test_a_tensor_without_an_owner_or_with_two_is_refused(
    donors: Donors, blocks: dict[str, Owner], rest: dict[str, Owner], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(donors, blocks, rest)


def test_donors_of_another_family_shape_dtype_or_tying_are_refused(
    donors: Donors, make_donors: Callable[..., Donors], qwen2_vl_checkpoint: Path, tmp_path: Path
) -> None:
    start = donors.paths["in"]
    with pytest.raises(ValueError, match="donor rl is a qwen2_vl, in a qwen2_5_vl; expected donors of one family"):
        plan_of(donors, paths={"rl": qwen2_vl_checkpoint})
    with pytest.raises(ValueError, match=r"lacks .*layers\.4\."):
        plan_of(donors, paths={"rl": make_donors(4).paths["rl"]})
    with pytest.raises(ValueError, match=rf"has '{HEAD}', which .* lacks"):
        plan_of(donors, paths={"rl": make_donors(6, tied=False).paths["rl"]})
    tensors = load_file(start / WEIGHTS_FILE)
    half = copy_with(start, tmp_path / "half", {name: tensor.bfloat16() for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"donor rl stores '.*' as BF16, in as F32; a splice copies bytes"):
        plan_of(donors, paths={"rl": half})
    equal_head = copy_with(start, tmp_path / "equal-head", {HEAD: tensors["model.embed_tokens.weight"].clone()})
    edit_config(equal_head, tie_word_embeddings=False)
    config = json.loads((equal_head / "config.json").read_text())
    edit_config(equal_head, text_config={**config["text_config"], "tie_word_embeddings": False})
    with pytest.raises(ValueError, match="donor in ties its head to its embeddings, rl does not"):
        plan_of(donors, paths={"rl": equal_head})


def test_dtype_of_a_donor_that_gives_the_layout_alone_does_not_count(donors: Donors, tmp_path: Path) -> None:
    tensors = load_file(donors.paths["in"] / WEIGHTS_FILE)
    half = copy_with(
        donors.paths["in"], tmp_path / "half", {name: tensor.bfloat16() for name, tensor in tensors.items()}
    )
    owners: dict[str, Owner] = dict.fromkeys(REST, "rl")
    plan = plan_of(donors, {"llm": "rl"}, owners, paths={"in": half})
    assert {entry.dtype for shard in plan.shards for entry in shard.entries} == {"F32"}
    assert {entry.name_on_disk for shard in plan.shards for entry in shard.entries} == set(tensors)
    assert any(note.startswith("in: gives the layout on disk and no weights") for note in plan.notes)


def test_text_only_models_have_no_tower_to_own_and_are_told(qwen2_checkpoint: Path) -> None:
    recipe = Recipe(donors={"in": str(qwen2_checkpoint)}, blocks={"llm": "in"}, rest=REST)
    plan = make_plan(recipe)
    assert sorted(note.split(":")[0] for note in plan.notes) == ["projector", "vision"]
    assert set(plan.owners) == set(open_checkpoint(qwen2_checkpoint).tensors)


@pytest.mark.parametrize("first", ["in", "rl"])
def test_layout_is_the_first_donors_to_the_byte(donors: Donors, first: str) -> None:
    other = "rl" if first == "in" else "in"
    checkpoints = {name: str(donors.paths[name]) for name in (first, other)}
    plan = make_plan(Recipe(donors=checkpoints, blocks=BLOCKS, rest=REST))
    files = sorted(path.name for path in donors.paths[first].glob("*.safetensors"))
    assert sorted(shard.file for shard in plan.shards) == files
    for shard in plan.shards:
        content = (donors.paths[first] / shard.file).read_bytes()
        assert content.startswith(shard.header) and shard.num_bytes == len(content)
    index = donors.paths[first] / INDEX_FILE
    assert plan.index == (index.read_bytes() if index.exists() else None)


@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 100_000, 10**9])
def test_tensors_are_packed_anew_in_the_first_donors_order(donors: Donors, max_shard_bytes: int) -> None:
    order = [stored.name_on_disk for stored in open_checkpoint(donors.paths["in"]).tensors.values()]
    plan = plan_of(donors, max_shard_bytes=max_shard_bytes)
    assert [entry.name_on_disk for shard in plan.shards for entry in shard.entries] == order
    sizes = [sum(entry.num_bytes for entry in shard.entries) for shard in plan.shards]
    alone = [len(shard.entries) == 1 for shard in plan.shards]
    assert all(size <= max_shard_bytes or single for size, single in zip(sizes, alone, strict=True))
    assert all(
        size + following.entries[0].num_bytes > max_shard_bytes
        for size, following in zip(sizes[:-1], plan.shards[1:], strict=True)
    )
    if len(plan.shards) == 1:
        assert plan.shards[0].file == WEIGHTS_FILE and plan.index is None
    else:
        number = len(plan.shards)
        assert plan.shards[-1].file == f"model-{number:05d}-of-{number:05d}.safetensors" and plan.index is not None
        index = json.loads(plan.index)
        assert index["metadata"]["total_size"] == sum(sizes)
        assert index["weight_map"] == {e.name_on_disk: shard.file for shard in plan.shards for e in shard.entries}


def test_differences_between_the_donors_files_are_reported(donors: Donors, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(donors.paths["in"], other)
    edit_config(other, vision_start_token_id=7)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (other / "generation_config.json").write_text(
        json.dumps(json.loads((other / "generation_config.json").read_text())) + "\n\n"
    )
    (other / "processor_config.json").unlink()
    (other / "merges.txt").write_text("a b\n")
    for leftover in ("trainer_state.json", "splice.json", "README.md", "training_args.bin", ".hidden.json"):
        (other / leftover).write_text("{}")
    plan = plan_of(donors, paths={"rl": other})
    found = {file.name: file.others["rl"] for file in plan.files}
    assert found == {
        "chat_template.jinja": "differs",
        "config.json": "differs in vision_start_token_id",
        "generation_config.json": "differs in spelling alone",
        "processor_config.json": "lacking",
        "tokenizer.json": "same",
        "tokenizer_config.json": "same",
    }
    assert "config.json: rl's copy differs in vision_start_token_id, in's is taken" in plan.notes
    assert any(note.startswith("merges.txt: rl has this file, in has not") for note in plan.notes)
    turned = {file.name: file.others["in"] for file in plan_of(donors, paths={"rl": other}, files="rl").files}
    assert "processor_config.json" not in turned and turned["merges.txt"] == "lacking"


def test_fingerprint_follows_the_weights_and_not_names_or_layout(donors: Donors, tmp_path: Path) -> None:
    plan = plan_of(donors)
    same = plan_of(donors, max_shard_bytes=50_000, files="rl")
    renamed = make_plan(
        Recipe(
            donors={"b": str(donors.paths["rl"]), "a": str(donors.paths["in"])},
            blocks={"llm:0-1": "a", "llm:2-5": "b"},
            rest=dict.fromkeys(REST, "a"),
        )
    )
    assert fingerprint(plan) == fingerprint(same) == fingerprint(renamed)
    half = Blend(start="in", end="rl", alpha=0.5)
    others = [
        plan_of(donors, {**BLOCKS, "mid": "in"}),
        plan_of(donors, rest={**REST, "norm": "rl"}),
        plan_of(donors, {**BLOCKS, "mid": half}),
        plan_of(donors, {**BLOCKS, "mid": Blend(start="in", end="rl", alpha=0.25)}),
        plan_of(donors, {**BLOCKS, "mid": Blend(start="in", end="rl", alpha=0.5, onto="rl")}),
    ]
    assert len({fingerprint(plan), *map(fingerprint, others)}) == 6
    assert fingerprint(plan_of(donors, {**BLOCKS, "mid": half})) == fingerprint(others[2])
    norm = load_file(donors.paths["in"] / WEIGHTS_FILE)["model.norm.weight"] + 1
    retrained = copy_with(donors.paths["in"], tmp_path / "retrained", {"model.norm.weight": norm})
    assert fingerprint(plan_of(donors, paths={"in": retrained})) != fingerprint(plan)
