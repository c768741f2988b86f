"""Keys and values that Gemma 4's files have for layers that read those of others: carried, as no model loads them."""

from pathlib import Path

import pytest
import torch

from merge.recipes.plan import make_plan
from merge.recipes.recipe import recipe_from_pattern
from merge.splice import write_splice
from models.checkpoint import open_checkpoint, write_like
from models.completeness import check_against_config, check_complete
from models.layout import layout_of
from models.loading import load_model
from tests.gemma4 import NUM_LAYERS, NUM_SHARING, write_gemma4
from tests.models.damage import read_tensors, write_tensors
from train.freezing.freeze import FreezeArguments, apply_freeze, count_blocks, plan_freeze
from train.verify import main as verify


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with such tensors, as E2B and E4B are published."""
    directory = write_gemma4(tmp_path_factory.mktemp("published") / "checkpoint", "small")
    tensors = read_tensors(directory)
    for layer in range(NUM_LAYERS - NUM_SHARING, NUM_LAYERS):
        for part in ("k_proj", "v_proj", "k_norm"):
            source = f"model.language_model.layers.{layer - NUM_SHARING}.self_attn.{part}.weight"
            tensors[f"model.language_model.layers.{layer}.self_attn.{part}.weight"] = tensors[source] + 1
    write_tensors(directory, tensors)
    return directory


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint without them, as Transformers saves it."""
    return write_gemma4(tmp_path_factory.mktemp("tuned") / "checkpoint", "small", seed=1)


@pytest.mark.slow
def test_they_are_carried_with_their_layer_and_train_in_no_run(published: Path, tmp_path: Path) -> None:
    checkpoint, layout = open_checkpoint(published), layout_of(published)
    check_complete(checkpoint, layout)
    check_against_config(checkpoint)
    carried = set(layout.carried)
    assert len(carried) == 3 * NUM_SHARING and carried == set(checkpoint.tensors) - set(
        load_model(published).state_dict()
    )
    plan = plan_freeze(layout, FreezeArguments(freeze=["mid"]))
    assert carried <= set(plan.frozen)
    apply_freeze(load_model(published), plan)
    assert {count.block: count.state for count in count_blocks(plan)}["late"] == "trains"
    saved = tmp_path / "saved"
    load_model(published).save_pretrained(saved)
    assert set(open_checkpoint(saved).tensors) == set(checkpoint.tensors) - carried
    (tmp_path / "final").mkdir()
    write_like(tmp_path / "final", start=checkpoint, weights=open_checkpoint(saved))
    assert (tmp_path / "final" / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_a_checkpoint_that_lost_them_is_compared_without_them(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = tmp_path / "end"
    load_model(published).save_pretrained(end)
    verify(["--start", str(published), "--end", str(end), "--frozen", "late", "--allow-unchanged", "true"])
    assert "tensors of late are bit-identical" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("first", ["published", "tuned"])
def test_a_splice_has_them_where_its_first_donor_has(published: Path, tuned: Path, tmp_path: Path, first: str) -> None:
    paths = {"published": published, "tuned": tuned}
    names = [first, *(name for name in paths if name != first)]
    recipe = recipe_from_pattern(
        "published:published:tuned", donors=[f"{name}={paths[name]}" for name in names], rest=["published"]
    )
    plan = make_plan(recipe)
    spliced = open_checkpoint(write_splice(plan, tmp_path / "splice", max_shard_bytes=None))
    assert set(spliced.tensors) == set(open_checkpoint(paths[first]).tensors)
    late = "model.language_model.layers.5."
    for name in spliced.tensors:
        owner = (
            tuned
            if name.startswith((late, late.replace("5", "4"))) and name in open_checkpoint(tuned).tensors
            else published
        )
        assert spliced.data(name) == open_checkpoint(owner).data(name), name
    assert any("that no layer reads" in note for note in plan.notes) == (first == "published")
    scalar = dict(load_model(spliced.directory).named_buffers())[late + "layer_scalar"]
    assert torch.equal(scalar, open_checkpoint(tuned).tensor(late + "layer_scalar"))
