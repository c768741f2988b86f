"""Computes a vision tower's features of each image, layer by layer, averaged over patches and stored on disk.

Layers are `block.0` … (the output of each vision block), `merger` (the decoder's input; InternVL's is `projector`) and
Qwen3-VL's `deepstack.0` …, read by hooks on the modules that `models/families.py` names. Qwen2.5-VL reorders the
patches of each image into its attention windows, which does not affect the average. InternVL cuts an image into tiles:
the average is over the patches of all of them and of the thumbnail, without their class tokens. Only the tower is kept
in memory, in float32.

`features/NAME/00000000.npy` … contain one batch of images each, all layers concatenated; `layers.json` has their
widths. In a cache (`cached_directory`) a folder per model, pictures and processing takes the place of `features/NAME`.
"""

import copy
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import PixelLimits, UnusableImageError, open_image
from eval.replies.pictures import TileLimits
from eval.replies.subject import Subject
from eval.tower.labelled import LabelledImage
from models.families import Family, family_of
from models.layout import read_model_config
from models.loading import load_processor
from tracking.product import partial_file, write_text
from tracking.progress import progress

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

LAYERS_FILE = "layers.json"
KEY_FILE = "key.json"
KEY_LENGTH = 32
FEATURES_VERSION = 1
"""To be raised when the same weights and pictures get other features: cached ones are then not used any more."""
MAX_PATCHES = 16_384
"""Patches per forward pass: about 4 GiB of activations in a tower of 1,280 channels, in float32."""
PIXELS = "pixels"
PIXEL_SIDE = 32
"""Width and height of the raw-pixel baseline: 3,072 numbers, no fewer than a tower's layer has."""

Embed = Callable[[Iterable["Image"]], dict[str, Float[np.ndarray, "pictures width"]]]
"""Function from images to features by layer."""


@dataclass(frozen=True)
class Label:
    """A model, or a baseline, which may stand several times with other seeds."""

    name: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}@{self.seed}"


@dataclass(frozen=True)
class FeatureStore:
    """Features of all images under one model, in order."""

    directory: Path

    @property
    def layers(self) -> dict[str, int]:
        """Width by layer, in the order of depth."""
        widths: dict[str, int] = json.loads((self.directory / LAYERS_FILE).read_text(encoding="utf-8"))
        return widths

    def read(self, layer: str) -> Float[np.ndarray, "pictures width"]:
        """Returns one layer's features; the others stay on disk."""
        first = 0
        for name, width in self.layers.items():
            if name == layer:
                break
            first += width
        files = sorted(self.directory.glob("[0-9]*.npy"))
        found = np.concatenate([np.load(file, mmap_mode="r")[:, first : first + self.layers[layer]] for file in files])
        if not np.isfinite(found).all():
            raise ValueError(
                f"{self.directory.name}, {layer}: some features are not finite; the tower cannot be probed"
            )
        return found


def vision_family(directory: Path) -> Family:
    """Returns a checkpoint's family.

    Raises:
        ValueError: if it has no vision tower.
    """
    family = family_of(read_model_config(directory)["model_type"])
    if family.vision_blocks is None:
        raise ValueError(f"{directory} is a text-only model ({family.model_type}); expected one with a vision tower")
    return family


def tower_path(family: Family) -> str:
    """Returns the smallest module that contains a family's blocks and projector, such as `model.visual`."""
    assert family.vision_blocks is not None
    prefixes = [family.vision_blocks, *(prefix for region, prefix in family.regions if region == "projector")]
    parents = [prefix.removesuffix(".").rpartition(".")[0].replace(".", "/") for prefix in prefixes]
    return os.path.commonpath(parents).replace("/", ".")


def tower_config(directory: Path) -> dict[str, Any]:
    """Returns the settings that determine a tower's shape; if they agree, towers are comparable layer by layer."""
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(directory).vision_config.to_dict()
    told = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "initializer_range")
    return {name: value for name, value in config.items() if name not in told}


def trained_tower(subject: Subject) -> "torch.nn.Module":
    """Loads a model and returns its tower with the projector in float32; the decoder is freed."""
    model, _ = subject.load(dtype="auto", attn_implementation="sdpa")
    family = vision_family(subject.directory)
    return without_decoder(model.get_submodule(tower_path(family)), family).float()


def without_decoder(tower: "torch.nn.Module", family: Family) -> "torch.nn.Module":
    """Removes the decoder from the module of `tower_path`, if it is inside, and returns the module."""
    inside = tower_path(family) + "."
    if family.layers.startswith(inside):
        setattr(tower, family.layers.removeprefix(inside).partition(".")[0], None)
    return tower


def random_tower(directory: Path, *, seed: int) -> "torch.nn.Module":
    """Returns a tower and projector with a checkpoint's configuration and random weights from the seed."""
    import torch
    import transformers

    family = vision_family(directory)
    with torch.device("meta"):
        model = getattr(transformers, family.auto_class).from_config(
            transformers.AutoConfig.from_pretrained(directory), attn_implementation="sdpa", dtype=torch.float32
        )
    drawn = model.get_submodule(tower_path(family))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower: torch.nn.Module = without_decoder(type(drawn)(_smallest_decoder(drawn.config)), family)
    return tower.float().eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _smallest_decoder(config: Any) -> Any:
    """Returns a configuration whose decoder, if it has one, takes little memory; its width is the projector's."""
    if not hasattr(config, "text_config"):
        return config
    config = copy.deepcopy(config)
    text = config.text_config
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, 1, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return config


def layer_modules(tower: "torch.nn.Module", family: Family) -> dict[str, "torch.nn.Module"]:
    """Returns a tower's blocks, deepstack mergers (if any) and merger, keyed by layer name."""
    inside = tower_path(family) + "."
    blocks = tower.get_submodule(str(family.vision_blocks).removeprefix(inside).removesuffix("."))
    layers = {f"block.{index}": block for index, block in blocks.named_children()}
    for region, prefix in family.regions:
        if region == "projector":
            module = tower.get_submodule(prefix.removeprefix(inside).removesuffix("."))
            stacked = prefix.endswith("_list.")
            name = "merger" if prefix.endswith("merger.") else "projector"
            layers |= (
                {f"deepstack.{index}": own for index, own in module.named_children()} if stacked else {name: module}
            )
    return layers


def embed_by_tower(tower: "torch.nn.Module", directory: Path) -> Embed:
    """Returns a function that computes every layer's features of images that are already resized."""
    image_processor = load_processor(directory).image_processor
    family = vision_family(directory)
    layers = layer_modules(tower, family)
    options = {"crop_to_patches": True} if family.tiled else {"do_resize": False}
    one_pass = _pass_of_tiles if family.tiled else _pass_of_patches

    def embed(images: Iterable["Image"]) -> dict[str, np.ndarray]:
        passes: list[dict[str, np.ndarray]] = []
        waiting: list[Any] = []
        for image in images:
            ready = image_processor(images=[image], return_tensors="pt", **options)
            if waiting and sum(_num_patches(tower, other) for other in [*waiting, ready]) > MAX_PATCHES:
                passes.append(one_pass(tower, layers, waiting))
                waiting = []
            waiting.append(ready)
        passes.append(one_pass(tower, layers, waiting))
        return {name: np.concatenate([one[name] for one in passes]) for name in layers}

    return embed


def _num_patches(tower: Any, ready: Any) -> int:
    """Returns the patches of an image: rows of values, or those of its tiles."""
    pixels = ready["pixel_values"]
    if pixels.ndim == 2:
        return len(pixels)
    height, width = tower.config.vision_config.patch_size
    return int(pixels.shape[0] * (pixels.shape[2] // height) * (pixels.shape[3] // width))


def _pass_of_patches(
    tower: "torch.nn.Module", layers: Mapping[str, "torch.nn.Module"], prepared: Sequence[Any]
) -> dict[str, np.ndarray]:
    import torch

    device = next(tower.parameters()).device
    patches = torch.cat([one["pixel_values"] for one in prepared]).to(device, torch.float32)  # [patches, pixels]
    grids = torch.cat([one["image_grid_thw"] for one in prepared]).to(device)  # [pictures, 3]
    num_patches = grids.prod(dim=1)

    def pool(name: str, output: "torch.Tensor") -> "torch.Tensor":
        # [patches or merged patches, width]; patches of an image are contiguous, in any order
        lengths = num_patches * len(output) // len(patches)
        return torch.segment_reduce(output, "mean", lengths=lengths, axis=0)

    return _pooled(layers, pool, lambda: tower(patches, grid_thw=grids))


def _pass_of_tiles(
    tower: Any, layers: Mapping[str, "torch.nn.Module"], prepared: Sequence[Any]
) -> dict[str, np.ndarray]:
    import torch

    device = next(tower.parameters()).device
    tiles = torch.cat([one["pixel_values"] for one in prepared]).to(device, torch.float32)  # [tiles, 3, height, width]
    num_tiles = torch.tensor([len(one["pixel_values"]) for one in prepared], device=device)

    def pool(name: str, output: "torch.Tensor") -> "torch.Tensor":
        # [tiles, class token and patches, width] of a block, [tiles, tokens, width] of the projector
        tokens = output[:, 1:] if name.startswith("block.") else output
        return torch.segment_reduce(tokens.mean(dim=1), "mean", lengths=num_tiles, axis=0)

    return _pooled(layers, pool, lambda: tower.get_image_features(tiles))


def _pooled(
    layers: Mapping[str, "torch.nn.Module"],
    pool: Callable[[str, "torch.Tensor"], "torch.Tensor"],
    run: Callable[[], Any],
) -> dict[str, np.ndarray]:
    """Returns what `pool` makes of each layer's output while `run` runs."""
    import torch

    pooled: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: "torch.Tensor") -> None:
            pooled[name] = pool(name, output).cpu().numpy()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return pooled


def embed_as_pixels(images: Iterable["Image"]) -> dict[str, np.ndarray]:
    """Returns the images themselves, reduced to `PIXEL_SIDE` pixels per side, with values in [0, 1]."""
    from PIL.Image import Resampling

    small = [image.resize((PIXEL_SIDE, PIXEL_SIDE), Resampling.BOX) for image in images]
    return {PIXELS: np.stack([np.asarray(image, dtype=np.float32).reshape(-1) / 255 for image in small])}


def cached_directory(
    cache: Path, identity: Mapping[str, Any], images: Sequence[LabelledImage], batch_size: int
) -> Path:
    """Returns the folder of a cache that holds the features of these images under a model; its name is a key.

    Args:
        cache: the cache's folder.
        identity: what determines a picture's features: weights, processing.
        images: their contents and order are part of the key; their names and classes are not.
        batch_size: images per file.
    """
    import torch
    import transformers

    digest = hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()
    key = {
        "features": FEATURES_VERSION,
        "model": json.loads(json.dumps(identity, default=str)),
        "pictures_sha256": digest,
        "batch_size": batch_size,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    text = json.dumps(key, indent=2, sort_keys=True) + "\n"
    directory = cache / hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / KEY_FILE).exists():
        write_text(directory / KEY_FILE, text)
    return directory


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Waits until no other command writes into a folder of features."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def store_features(
    directory: Path,
    make: Callable[[], Embed],
    images: Sequence[LabelledImage],
    limits: PixelLimits | TileLimits | None,
    *,
    batch_size: int,
    name: str | None = None,
) -> FeatureStore:
    """Writes the features of all images, batch by batch; existing batches are kept.

    Args:
        directory: folder of this model's features.
        make: returns the function from images to features; called only if a batch is missing.
        images: in the order in which they are stored.
        limits: pixel limits of the images, or the tiles into which they are cut; None to leave them as they are.
        batch_size: images per file.
        name: the model's name in messages; by default the folder's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    batches = {directory / f"{first:08d}.npy": images[first : first + batch_size]
               for first in range(0, len(images), batch_size)}  # fmt: skip
    with _alone(directory):
        missing = {path: batch for path, batch in batches.items() if not path.exists()}
        embed = make() if missing else None
        label = f"features of {name or directory.name}"
        for path, batch in progress(missing.items(), label=label, total=len(missing)):
            assert embed is not None
            features = embed(_fitted(batch, limits))
            widths = {layer: array.shape[1] for layer, array in features.items()}
            if not (directory / LAYERS_FILE).exists():
                write_text(directory / LAYERS_FILE, json.dumps(widths) + "\n")
            with partial_file(path) as partial:
                np.save(partial, np.concatenate(list(features.values()), axis=1))
    return FeatureStore(directory)


def _fitted(batch: Iterable[LabelledImage], limits: PixelLimits | TileLimits | None) -> Iterable["Image"]:
    from qwen_vl_utils.vision_process import to_rgb

    for image in batch:
        if limits is None or isinstance(limits, TileLimits):
            yield to_rgb(eight_bits(image.open()))
            continue
        try:
            yield open_image(image.open(), None, limits)
        except UnusableImageError as error:
            raise ValueError(f"picture {image.id}: cannot be resized for the model ({error}); leave it out") from error
