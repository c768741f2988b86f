"""Are an encoder's features those of its own blocks, and does the command tell what an encoder sees from a tower?"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from eval.tower.command import main
from eval.tower.encoders import Encoder, check_encoder, embed_by_encoder, open_encoders
from eval.tower.features import FeatureStore, cached_directory, store_features
from eval.tower.labelled import LabelledImage
from tracking.tables import read_table

VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99,
    "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
SQUARE = {"height": 32, "width": 32}


def dual(kind: str, **vision: int) -> Any:
    """Returns a CLIP or SigLIP with a text half."""
    config = getattr(transformers, f"{kind}Config")(vision_config={**VIT, **vision}, text_config=TEXT)
    return getattr(transformers, f"{kind}Model")(config)


def resized() -> Any:
    return transformers.ViTImageProcessor(size=SQUARE)


ENCODERS: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, int]] = {
    # builds the model, builds its processor, where its blocks or stages are, tokens before the patches
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT, image_size=32)), resized, "layers", 1),
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VIT, image_size=32)),
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        "encoder.layer",
        1,
    ),
    "dinov3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VIT, image_size=32, num_register_tokens=4)),
        lambda: transformers.DINOv3ViTImageProcessor(size=SQUARE),
        "layer",
        5,
    ),
    "dinov3_convnext": (
        lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**STAGES)),
        lambda: transformers.DINOv3ViTImageProcessor(size=SQUARE),
        "stages",
        0,
    ),
    "convnext": (lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**STAGES)), resized, "stages", 0),
    "resnet": (
        lambda: transformers.ResNetModel(transformers.ResNetConfig(**STAGES, embedding_size=8)),
        resized,
        "stages",
        0,
    ),
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(vision_config={**VIT, "image_size": 32}, text_config=TEXT)
        ),
        lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        "vision_model.encoder.layers",
        1,
    ),
    "siglip": (
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(vision_config={**VIT, "image_size": 32}, text_config=TEXT)
        ),
        lambda: transformers.SiglipImageProcessor(size=SQUARE),
        "vision_model.encoder.layers",
        0,
    ),
    "siglip2": (
        lambda: transformers.Siglip2Model(
            transformers.Siglip2Config(vision_config={**VIT, "num_patches": 16}, text_config=TEXT)
        ),
        lambda: transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=20),
        "vision_model.encoder.layers",
        0,
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Writes an encoder with random weights and its processor; returns folder and model."""
    folder = tmp_path_factory.mktemp("encoders")
    made: dict[str, tuple[Path, Any]] = {}

    def build(name: str) -> tuple[Path, Any]:
        if name not in made:
            torch.manual_seed(0)
            model = ENCODERS[name][0]().eval()
            model.save_pretrained(folder / name)
            ENCODERS[name][1]().save_pretrained(folder / name)
            made[name] = (folder / name, model)
        return made[name]

    return build


def opened(directory: Path | str) -> Encoder:
    return open_encoders([f"own={directory}"], ())["own"]


def medmnist_pictures() -> list[Image.Image]:
    """Grey and RGB pictures of 28 pixels and of 224, as in MedMNIST's files."""
    rng = np.random.default_rng(0)
    shapes = ((28, 28), (28, 28, 3), (224, 224), (224, 224, 3))
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def labelled(images: list[Image.Image]) -> list[LabelledImage]:
    return [
        LabelledImage(id=str(index), label="a", sha256=str(index), open=lambda own=image: own)
        for index, image in enumerate(images)
    ]


def hooked(model: Any, path: str, run: Callable[[], Any]) -> tuple[list[torch.Tensor], Any]:
    """Returns what the blocks of a model put out, read by hooks, and what the model returns."""
    states: list[torch.Tensor] = []
    lists = torch.nn.ModuleList, torch.nn.Sequential
    blocks = next(own for name, own in model.named_modules() if name.endswith(path) and isinstance(own, lists))
    hooks = [
        block.register_forward_hook(lambda _, given, out: states.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    with torch.inference_mode():
        output = run()
    for hook in hooks:
        hook.remove()
    return states, output


@pytest.mark.cases_slow
@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_the_means_of_an_encoders_own_blocks_for_pictures_of_all_sizes(
    name: str, built: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    directory, model = built(name)
    _, _, path, num_prefix = ENCODERS[name]
    encoder = opened(directory)
    images = labelled(medmnist_pictures())
    store = store_features(tmp_path / "x", lambda: embed_by_encoder(encoder), images, None, batch_size=3)
    vision = getattr(model, "vision_model", model)
    for index, image in enumerate(medmnist_pictures()):
        inputs = encoder.processor(images=[image.convert("RGB")], return_tensors="pt")
        states, output = hooked(model, path, lambda given=inputs: vision(**given))
        assert list(store.layers) == [*(f"layer.{layer}" for layer in range(len(states))), "pooled"]
        for layer, state in enumerate(states):
            if state.ndim == 4:
                expected = state.mean(dim=(2, 3))[0]
            elif name == "siglip2":  # 16 patches and 4 of padding
                expected = state[:, : int(inputs["pixel_attention_mask"].sum())].mean(dim=1)[0]
            else:
                expected = state[:, num_prefix:].mean(dim=1)[0]
            np.testing.assert_allclose(store.read(f"layer.{layer}")[index], expected, atol=2e-5)
        np.testing.assert_allclose(store.read("pooled")[index], output.pooler_output.flatten(), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_model_of_timm_is_read_from_a_folder_in_its_layout(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    options = {"depth": 2, "img_size": 32} if "vit" in architecture else {}
    settings = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = transformers.TimmWrapperConfig.from_dict(
        {"architecture": architecture, "model_args": options, "num_classes": 0, "pretrained_cfg": settings}
    )
    torch.manual_seed(0)
    model: Any = transformers.TimmWrapperModel(config).eval()
    model.save_pretrained(tmp_path / "own")
    encoder = opened(tmp_path / "own")
    images = labelled(medmnist_pictures())
    store = store_features(tmp_path / "x", lambda: embed_by_encoder(encoder), images, None, batch_size=4)
    picture = encoder.processor(images=[medmnist_pictures()[3]])["pixel_values"]
    path = "timm_model.blocks" if "vit" in architecture else "timm_model.layer4"
    states, output = hooked(model, path, lambda: model(picture))
    last = states[-1][:, 1:].mean(dim=1)[0] if "vit" in architecture else states[-1].mean(dim=(2, 3))[0]
    *layers, pooled = store.layers
    np.testing.assert_allclose(store.read(layers[-1])[3], last, atol=2e-5)
    assert pooled == "pooled" and len(layers) == (2 if "vit" in architecture else 5)
    np.testing.assert_allclose(store.read(pooled)[3], output.pooler_output[0], atol=2e-5)


def test_features_are_cached_by_weights_pictures_and_processing(
    built: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    directory, _ = built("vit")
    images = labelled(medmnist_pictures())

    def place(own: Path, shown: list[LabelledImage] = images) -> Path:
        return cached_directory(tmp_path / "cache", opened(own).identity, shown, 2)

    copy = shutil.copytree(directory, tmp_path / "copy")
    first = place(directory)
    assert place(copy) == first
    assert place(copy, images[::-1]) != first
    transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.1] * 3).save_pretrained(copy)
    assert place(copy) != first
    other = ENCODERS["vit"][0]()
    other.save_pretrained(tmp_path / "other")
    resized().save_pretrained(tmp_path / "other")
    assert place(tmp_path / "other") != first


def test_an_encoder_without_the_weights_of_its_pooler_has_no_pooled_layer(
    built: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    directory, _ = built("vit")
    transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False).save_pretrained(tmp_path)
    resized().save_pretrained(tmp_path)
    assert list(embed_by_encoder(opened(tmp_path))([medmnist_pictures()[1]])) == ["layer.0", "layer.1"]


def refusal(directory: Path | str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        embed_by_encoder(opened(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_encoder_of_colour_pictures_is_refused_in_a_line(
    built: Callable[[str], tuple[Path, Any]],
    pocket_checkpoint: Path,
    qwen2_checkpoint: Path,
    tmp_path: Path,
) -> None:
    directory, _ = built("vit")
    assert "is a vision-language model (qwen2_5_vl), no vision encoder; name it with --model" in refusal(
        pocket_checkpoint
    )
    assert "is a language model (qwen2)" in refusal(qwen2_checkpoint)

    grey = shutil.copytree(directory, tmp_path / "grey")
    transformers.ViTConfig(**VIT, image_size=32, num_channels=1).save_pretrained(grey)
    assert "reads pictures of 1 channels; expected 3" in refusal(grey)

    bare = shutil.copytree(directory, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert "holds no image processor" in refusal(bare)

    empty = shutil.copytree(directory, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert "holds no .safetensors file" in refusal(empty)

    deep = shutil.copytree(directory, tmp_path / "deep")
    transformers.ViTConfig(**{**VIT, "num_hidden_layers": 3}, image_size=32).save_pretrained(deep)
    assert re.search(r"lacks \d+ tensors of ViTModel", refusal(deep))

    for text, expected in (("vit", "is no NAME=MODEL"), ("a@b=x", "is no NAME=MODEL"), ("a=no/such/x", "not exist")):
        with pytest.raises(ValueError, match=expected):
            check_encoder(text)
    with pytest.raises(ValueError, match="choose another name"):
        open_encoders([f"pixels={directory}"], {"pixels"})


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RGB pictures in MedMNIST's layout: noise with a red patch, with a blue patch, or without a patch."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, num in (("train", 90), ("test", 90)):
        labels = np.arange(num) % 3
        images = rng.integers(0, 60, (num, 28, 28, 3))
        for image, label in zip(images, labels, strict=True):
            row, column = rng.integers(0, 12, 2)
            if label:
                image[row : row + 16, column : column + 16, 0 if label == 1 else 2] += 180
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    path = tmp_path_factory.mktemp("colours") / "colours.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_an_encoder_that_lost_one_class_is_told_from_its_original(
    built: Callable[[str], tuple[Path, Any]],
    pocket_checkpoint: Path,
    colours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    whole, model = built("convnext")
    blind = shutil.copytree(whole, tmp_path / "blind")
    name = next(name for name, _ in model.named_parameters() if "patch_embeddings.weight" in name)
    weight = model.get_parameter(name)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 2] = 0  # sees no blue: a blue patch is none
        model.save_pretrained(blind)
        weight.copy_(kept)

    def run(output_dir: Path) -> None:
        main([
            "--model", f"base={pocket_checkpoint}", "--encoder", f"whole={whole}", f"blind={blind}", "--data",
            str(colours), "--output_dir", str(output_dir), "--num_folds", "3", "--num_random", "1", "--cache-dir",
            str(tmp_path / "cache"),
        ])  # fmt: skip

    run(tmp_path / "out")
    assert "model less encoder, in points" in capsys.readouterr().out
    rows = read_table(tmp_path / "out" / "differences.csv")
    rows = rows[(rows["probe"] == "linear") & (rows["layer"] == "merger")].set_index("against")
    assert rows.loc["blind", "low"] > 0.1 and rows.loc["blind", "p_holm"] < 0.001, rows.loc["blind"]
    assert rows.loc["whole", "low"] < 0 < rows.loc["whole", "high"] and rows.loc["whole", "p_holm"] > 0.05
    classes = read_table(tmp_path / "out" / "classes.csv")
    classes = classes[(classes["probe"] == "linear") & (classes["layer"] == "merger")].set_index(["against", "class"])
    assert classes.loc[("blind", 2), "low"] > 0.1 and classes.loc[("blind", 2), "p_holm"] < 0.01, classes.loc["blind"]
    assert classes.loc[("blind", 1), "p_holm"] > 0.05 and classes.loc[("whole", 2), "p_holm"] > 0.05
    scores = read_table(tmp_path / "out" / "tower.csv")
    own = scores[(scores["model"] == "whole") & (scores["probe"] == "linear")]
    best = own.loc[own["cv_accuracy"].idxmax()]
    assert rows.loc["whole", "against_layer"] == best["layer"]
    assert set(rows["family"]) >= {"linear, encoders", "linear, pixels", "linear, random"}

    with np.load(colours) as file:
        train, test = file["train_labels"].ravel(), file["test_labels"].ravel()
    places = list((tmp_path / "cache").glob("*"))
    stores = [FeatureStore(place) for place in places if f"layer.{3}" in FeatureStore(place).layers]
    accuracies = set()
    for store in stores:
        features = store.read(best["layer"]).astype(float)
        scaler = StandardScaler().fit(features[: len(train)])
        by_hand = LogisticRegression(C=best["setting"], max_iter=5000).fit(scaler.transform(features[:90]), train)
        accuracies.add(round(by_hand.score(scaler.transform(features[90:]), test), 3))
    assert len(stores) == 2 and round(best["accuracy"], 3) in accuracies

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    run(tmp_path / "again")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert (tmp_path / "again" / "tower.csv").read_bytes() == (tmp_path / "out" / "tower.csv").read_bytes()
