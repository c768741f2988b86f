"""Are a tower's features those that the model itself computes, independently of the rest of the batch?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_builders.prompt_sets.images import PixelLimits
from eval.replies.subject import open_subject
from eval.tower import features as tower_features
from eval.tower.features import (
    FeatureStore,
    embed_as_pixels,
    embed_by_tower,
    random_tower,
    store_features,
    trained_tower,
    vision_family,
)
from eval.tower.labelled import LabelledImage
from models.loading import load_model, load_processor

FAMILIES = ("pocket_checkpoint", "qwen2_vl_checkpoint", "qwen3_vl_checkpoint")
LIMITS = PixelLimits(min_pixels=28 * 28, max_pixels=16 * 28 * 28)


def pictures(cell: int, num: int = 5) -> list[Image.Image]:
    """Noisy pictures of different sizes, in whole cells; the largest has several attention windows."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (cell * (1 + index), cell * (6 - index), 3), dtype=np.uint8))
        for index in range(num)
    ]


def labelled(images: list[Image.Image]) -> list[LabelledImage]:
    return [LabelledImage(id=str(index), label="a", open=lambda own=image: own) for index, image in enumerate(images)]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_means_of_the_models_own_hidden_states(family: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(family)
    model: Any = load_model(directory, dtype="float32").eval()
    image_processor = load_processor(directory).image_processor
    images = pictures(2 * image_processor.patch_size)
    together = embed_by_tower(trained_tower(open_subject(str(directory))), directory)(images)
    assert len(together) == model.config.vision_config.depth + (3 if "qwen3" in family else 1)
    for index, image in enumerate(images):
        inputs = image_processor(images=[image], do_resize=False, return_tensors="pt")
        with torch.inference_mode():
            alone = model.get_image_features(**inputs, output_hidden_states=True)
        depth = model.config.vision_config.depth
        expected = {f"block.{block}": state for block, state in enumerate(alone.hidden_states[-depth:])}
        expected["merger"] = alone.pooler_output[0]
        if "qwen3" in family:
            expected |= {f"deepstack.{place}": state for place, (state,) in enumerate(alone.deepstack_features)}
        assert together.keys() == expected.keys()
        for name, states in expected.items():
            np.testing.assert_allclose(together[name][index], states.mean(dim=0), atol=2e-5, err_msg=name)


def test_features_of_tiles_are_means_over_all_patches_of_a_picture(
    internvl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model(internvl_checkpoint, dtype="float32").eval()
    image_processor = load_processor(internvl_checkpoint).image_processor
    images = pictures(14)
    tower = trained_tower(open_subject(str(internvl_checkpoint)))
    assert not any("language_model" in name for name, _ in tower.named_parameters())
    together = embed_by_tower(tower, internvl_checkpoint)(images)
    numbers = set()
    for index, image in enumerate(images):
        inputs = image_processor(images=[image], crop_to_patches=True, return_tensors="pt")
        numbers.add(len(inputs["pixel_values"]))
        with torch.inference_mode():
            alone = model.get_image_features(inputs["pixel_values"], output_hidden_states=True)
        states = {f"block.{block}": state[:, 1:] for block, state in enumerate(alone.hidden_states[-3:])}
        states["projector"] = alone.pooler_output
        assert together.keys() == states.keys()
        for name, state in states.items():
            np.testing.assert_allclose(together[name][index], state.mean(dim=(0, 1)), atol=2e-5, err_msg=name)
    assert len(numbers) > 1
    monkeypatch.setattr(tower_features, "MAX_PATCHES", 100)  # a few of the 16 patches of a tile
    for name, features in embed_by_tower(tower, internvl_checkpoint)(images).items():
        np.testing.assert_allclose(features, together[name], atol=2e-5)


def test_a_random_tower_of_tiles_has_the_trained_ones_shapes_and_its_seeds_weights(internvl_checkpoint: Path) -> None:
    trained = dict(trained_tower(open_subject(str(internvl_checkpoint))).named_parameters())
    drawn, again, other = (dict(random_tower(internvl_checkpoint, seed=s).named_parameters()) for s in (3, 3, 4))
    assert {name: own.shape for name, own in drawn.items()} == {name: own.shape for name, own in trained.items()}
    for name, own in drawn.items():
        assert torch.equal(own, again[name])
        if name.endswith("proj.weight") or ("linear" in name and own.dim() == 2):
            assert not torch.equal(own, other[name]) and not torch.equal(own, trained[name])


def test_pictures_that_do_not_fit_into_one_pass_have_the_same_features(
    pocket_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = embed_by_tower(random_tower(pocket_checkpoint, seed=0), pocket_checkpoint)
    whole = embed(pictures(28))
    monkeypatch.setattr(tower_features, "MAX_PATCHES", 40)
    for name, features in embed(pictures(28)).items():
        np.testing.assert_allclose(features, whole[name], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_tower_has_the_trained_ones_shape_and_its_seeds_weights(
    family: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(family)
    trained = trained_tower(open_subject(str(directory)))
    state = torch.get_rng_state()
    drawn, again, other = (dict(random_tower(directory, seed=seed).named_parameters()) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: own.shape for name, own in drawn.items()} == {n: own.shape for n, own in trained.named_parameters()}
    for name, own in trained.named_parameters():
        assert torch.equal(drawn[name], again[name]) and torch.isfinite(drawn[name]).all()
        if own.dim() > 1:
            assert not torch.equal(drawn[name], other[name]) and not torch.equal(drawn[name], own)
            assert abs(float(drawn[name].detach().std() / own.detach().std()) - 1) < 0.25, name


def test_features_continue_where_they_were_killed_and_each_layer_is_read_alone(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    embed = embed_by_tower(random_tower(pocket_checkpoint, seed=0), pocket_checkpoint)
    calls: list[int] = []

    def failing(images: Any) -> dict[str, np.ndarray]:
        given = list(images)
        calls.append(len(given))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(given)

    with pytest.raises(KeyboardInterrupt):
        store_features(tmp_path / "x", lambda: failing, labelled(pictures(28)), LIMITS, batch_size=2)
    store = store_features(tmp_path / "x", lambda: failing, labelled(pictures(28)), LIMITS, batch_size=2)
    assert calls == [2, 2, 2, 1]
    batches = [embed(pictures(28)[first : first + 2]) for first in (0, 2, 4)]
    assert store.layers == {"block.0": 64, "block.1": 64, "merger": 128}
    for name in store.layers:
        np.testing.assert_array_equal(store.read(name), np.concatenate([batch[name] for batch in batches]))

    def never() -> Any:
        raise AssertionError("nothing is missing")

    assert store_features(tmp_path / "x", never, labelled(pictures(28)), LIMITS, batch_size=2) == store


def test_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text('{"block.0": 2}')
    np.save(tmp_path / "00000000.npy", np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match=r"block\.0: some features are not finite"):
        FeatureStore(tmp_path).read("block.0")


def test_raw_pixels_are_the_pictures_own_values() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    np.testing.assert_allclose(embed_as_pixels([image])["pixels"][0], np.asarray(image).ravel() / 255, atol=1e-6)


def test_a_text_only_model_has_no_tower(qwen2_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="text-only"):
        vision_family(qwen2_checkpoint)
