"""Splices of Qwen3.5: every tensor in its donor's bits and dtype, and those that no model loads with them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from merge.recipes.recipe import read_recipe
from merge.splice import main
from merge.tensors.live import LiveSplicer
from merge.verify import main as verify
from models.checkpoint import open_checkpoint
from models.loading import load_model
from tests.models.damage import read_tensors, write_tensors


@pytest.fixture(scope="module")
def donors(mixed_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The mixed checkpoint; one that differs in every tensor; and one that has lost what Transformers does not load."""
    directory = tmp_path_factory.mktemp("donors")
    tensors = read_tensors(mixed_checkpoint)
    other = Path(shutil.copytree(mixed_checkpoint, directory / "other"))
    write_tensors(other, {name: own * 1.5 + 0.25 for name, own in tensors.items()})
    lost = Path(shutil.copytree(other, directory / "lost"))
    kept = {name: own for name, own in read_tensors(other).items() if not name.startswith("mtp.")}
    write_tensors(lost, kept)
    return {"in": mixed_checkpoint, "rl": other, "lost": lost}


def flags(donors: dict[str, Path], *names: str) -> list[str]:
    return [word for name in names for word in ("--donor", f"{name}={donors[name]}")]


@pytest.mark.parametrize("other", ["rl", "lost"])
def test_a_splice_copies_every_tensor_with_its_dtype(donors: dict[str, Path], tmp_path: Path, other: str) -> None:
    words = ["--pattern", f"in:{other}:in", "--rest", "in", *flags(donors, "in", other)]
    main([*words, "--output-dir", str(tmp_path / "run")])
    spliced = open_checkpoint(tmp_path / "run" / "checkpoint")
    start, end = open_checkpoint(donors["in"]), open_checkpoint(donors["rl"])
    assert {name: own.dtype for name, own in spliced.tensors.items()} == {
        name: own.dtype for name, own in start.tensors.items()
    }
    for name in start.tensors:
        expected = end if ".layers.1." in name and not name.startswith(("mtp.", "model.visual.")) else start
        assert spliced.data(name) == expected.data(name), name
    assert "mtp: from in, as all other regions" in json.dumps(
        json.loads((tmp_path / "run" / "checkpoint" / "splice.json").read_text())
    )
    verify([str(tmp_path / "run")])


def test_a_live_splice_is_the_written_one(donors: dict[str, Path], tmp_path: Path) -> None:
    recipe = {
        "donors": {name: str(donors[name]) for name in ("in", "rl")},
        "blocks": {"early": "rl", "mid": "in", "late": {"start": "in", "end": "rl", "alpha": 0.5}},
        "rest": {"vision": "in", "projector": "in", "embed": "rl", "norm": "in", "mtp": "rl"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    main(["--recipe", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "run")])
    written = dict(load_model(tmp_path / "run" / "checkpoint").named_parameters())
    live = dict(LiveSplicer().splice(read_recipe(tmp_path / "recipe.yaml")).named_parameters())
    assert set(live) == set(written)
    assert all(live[name].dtype == own.dtype and torch.equal(live[name], own) for name, own in written.items())
    assert {own.dtype for own in live.values()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ({"embed": "rl"}, r"gives no owner to mtp \(15 tensors, the first 'mtp.fc.weight'\)"),
        ({"mtp": "lost"}, r"takes 'mtp.fc.weight' from lost, which lacks it .*; take it from in or rl$"),
    ],
)
def test_an_owner_is_asked_for_or_refused(
    donors: dict[str, Path], tmp_path: Path, rest: dict[str, str], message: str
) -> None:
    recipe = {
        "donors": {name: str(path) for name, path in donors.items()},
        "blocks": {"early": "rl", "mid": "lost", "late": "in"},
        "rest": {"vision": "in", "projector": "in", "embed": "in", "norm": "in", **rest},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with pytest.raises(ValueError, match=message) as caught:
        main(["--recipe", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "run")])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_layer_of_one_kind_is_not_put_over_one_of_the_other(donors: dict[str, Path], tmp_path: Path) -> None:
    turned = Path(shutil.copytree(donors["rl"], tmp_path / "turned"))
    one, two = "model.language_model.layers.1.", "model.language_model.layers.2."
    swapped = {one: two, two: one}
    tensors = read_tensors(turned)
    renamed = {swapped.get(name[: len(one)], name[: len(one)]) + name[len(one) :]: own for name, own in tensors.items()}
    write_tensors(turned, renamed)
    config = json.loads((turned / "config.json").read_text())
    kinds = config["text_config"]["layer_types"]
    kinds[1], kinds[2] = kinds[2], kinds[1]
    (turned / "config.json").write_text(json.dumps(config))
    words = ["--pattern", "in:turned:in", "--rest", "in", *flags({**donors, "turned": turned}, "in", "turned")]
    with pytest.raises(ValueError, match=r"lacks 'model.language_model.layers.1.linear_attn") as caught:
        main([*words, "--output-dir", str(tmp_path / "run")])
    assert "\n" not in str(caught.value)
