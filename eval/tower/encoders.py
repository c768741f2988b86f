"""What does an encoder that saw pictures only know of them? Features of vision encoders, beside the towers of VLMs.

An encoder is a folder or hub id that Transformers' `AutoModel` loads: DINOv2, DINOv3 (ViT and ConvNeXt), SigLIP,
SigLIP 2, CLIP, ViT, ConvNeXt, ResNet and others; or a model of `timm` (`timm:resnet50.a1_in1k`, or a folder in timm's
layout), which needs the extra `timm`. Of CLIP and SigLIP only the vision half is loaded. Pictures reach an encoder
through its own image processor, at the size that it was trained on.

Layers are `layer.0` …, the output of each block or stage (timm's stages begin with the stem), and `pooled`, what the
encoder itself makes of a picture, if it does. Blocks are averaged over patches, without class, register and
distillation tokens, as the towers' are; stages over their positions. Weights are read from safetensors only.

Known limits: features are computed in float32 in one process. An encoder that returns no hidden states is refused.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.families import FAMILIES
from models.foreign import CONFIG_FILE
from models.loading import check_checkpoint, local_checkpoint

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from eval.tower.features import Embed

TIMM_PREFIX = "timm:"
POOLED = "pooled"
NUM_CHANNELS = 3
MAX_VALUES = 32 * 3 * 224 * 224
"""Pixel values per forward pass: 32 pictures of 224 x 224 pixels."""
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A vision encoder; its weights are loaded on demand."""

    name: str
    directory: Path
    fingerprint: str
    """sha256 of its configuration and weights."""
    processor: Any = field(repr=False)
    """Its image processor."""

    @property
    def identity(self) -> dict[str, Any]:
        """What determines its features of a picture: weights and processor settings."""
        settings = json.loads(json.dumps(self.processor.to_dict(), default=str, sort_keys=True))
        return {"fingerprint": self.fingerprint, "processor": settings}


def check_encoder(text: str) -> None:
    """Refuses what is plainly no `NAME=MODEL` of an encoder, in a moment."""
    check_checkpoint(_hub_name(_parse(text)[1]))


def encoder_name(text: str) -> str:
    """Returns the name in `NAME=MODEL`."""
    return _parse(text)[0]


def _parse(text: str) -> tuple[str, str]:
    name, separator, model = text.partition("=")
    if not (separator and name and model) or set("/@") & set(name):
        raise ValueError(f"--encoder {text!r} is no NAME=MODEL, such as dinov2=facebook/dinov2-base")
    return name, model


def _hub_name(model: str) -> str:
    own = model.removeprefix(TIMM_PREFIX)
    return f"timm/{own}" if own != model and "/" not in own else own


def open_encoders(texts: Sequence[str], taken: Collection[str]) -> dict[str, Encoder]:
    """Opens encoders by their names, without their weights.

    Args:
        texts: each `NAME=MODEL`; a model is a folder, a hub id, or `timm:` and one of timm's names.
        taken: names of models and baselines.

    Raises:
        ValueError: for a name that is taken, and for a model that is no vision encoder of colour pictures.
    """
    encoders: dict[str, Encoder] = {}
    for text in texts:
        name, model = _parse(text)
        if name in taken or name in encoders:
            raise ValueError(f"--encoder {text!r}: {name!r} names another model or a baseline; choose another name")
        directory = local_checkpoint(_hub_name(model))
        _encoder_class(directory)
        encoders[name] = Encoder(
            name=name, directory=directory, fingerprint=_fingerprint(directory), processor=_load_processor(directory)
        )
    return encoders


def _fingerprint(directory: Path) -> str:
    """Returns a sha256 over the configuration and all weight files."""
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{directory} holds no .safetensors file; convert the weights with save_pretrained")
    digest = hashlib.sha256()
    for path in (directory / CONFIG_FILE, *weights):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _load_processor(directory: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{directory} holds no image processor that Transformers can read ({type(error).__name__}); expected a "
            "preprocessor_config.json, as processor.save_pretrained writes it"
        ) from error


def _encoder_class(directory: Path) -> tuple[type[Any], Any]:
    """Returns the class of an encoder, of dual encoders that of the vision half, and its configuration."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_MAPPING,
    )

    try:
        config = AutoConfig.from_pretrained(directory)
    except ImportError as error:
        raise ValueError(_without_timm(directory)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory}: Transformers cannot read its config.json: {_one_line(error)}") from error
    kind = config.model_type
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (kind in FAMILIES and FAMILIES[kind].vision_blocks):
        raise ValueError(f"{directory} is a vision-language model ({kind}), no vision encoder; name it with --model")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in FAMILIES:
        raise ValueError(f"{directory} is a language model ({kind}); expected a vision encoder, such as a DINOv2")
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        config = config.vision_config
    found = MODEL_MAPPING.get(type(config), None)
    if found is None or getattr(found, "main_input_name", None) != "pixel_values":
        raise ValueError(f"{directory} ({kind}) is no encoder of pictures; expected one, such as a DINOv2 or a SigLIP")
    if (num := _num_channels(config)) != NUM_CHANNELS:
        raise ValueError(
            f"{directory} reads pictures of {num} channels; expected {NUM_CHANNELS} (grey pictures are shown as RGB)"
        )
    return found, config


def _is_timm(config: Any) -> bool:
    """True for Transformers' wrapper of timm's models, which has fields and hidden states of its own."""
    from transformers import TimmWrapperConfig

    return isinstance(config, TimmWrapperConfig)


def _num_channels(config: Any) -> int:
    if _is_timm(config):
        given = (config.model_args or {}).get("in_chans")
        return int(given or (config.pretrained_cfg or {}).get("input_size", (NUM_CHANNELS,))[0])
    return int(getattr(config, "num_channels", NUM_CHANNELS))


def _without_timm(directory: Path) -> str:
    return f"{directory} is a model of timm, which is not installed; install the extra: pip install -e '.[timm]'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def embed_by_encoder(encoder: Encoder) -> "Embed":
    """Loads an encoder, onto the GPU if there is one, and returns a function that computes its features of images."""
    import torch

    model, pools = _load(encoder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)

    def run(prepared: Sequence[Any]) -> dict[str, np.ndarray]:
        inputs = {
            name: torch.cat([one[name] for one in prepared]).to(device)
            for name in prepared[0]
            if isinstance(prepared[0][name], torch.Tensor)
        }
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True)
        return {name: own.float().cpu().numpy() for name, own in _features(model, inputs, output, pools).items()}

    def embed(images: Iterable["Image"]) -> dict[str, np.ndarray]:
        passes: list[dict[str, np.ndarray]] = []
        waiting: list[Any] = []
        for image in images:
            ready = encoder.processor(images=[image], return_tensors="pt")
            pixels = ready["pixel_values"]
            if waiting and (
                pixels.shape != waiting[0]["pixel_values"].shape or (len(waiting) + 1) * pixels.numel() > MAX_VALUES
            ):
                passes.append(run(waiting))
                waiting = []
            waiting.append(ready)
        passes.append(run(waiting))
        return {name: np.concatenate([one[name] for one in passes]) for name in passes[0]}

    return embed


def _load(encoder: Encoder) -> tuple[Any, bool]:
    """Returns the model, and whether its weights include those of its own pooling."""
    import torch

    found, config = _encoder_class(encoder.directory)
    try:
        model, loaded = found.from_pretrained(
            encoder.directory, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except ImportError as error:
        raise ValueError(_without_timm(encoder.directory)) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{encoder.directory}: its weights do not load: {_one_line(error)}") from error
    missing = sorted(loaded["missing_keys"])
    without_pooler = [name for name in missing if not name.startswith("pooler.")]
    if without_pooler:
        raise ValueError(
            f"{encoder.directory} lacks {len(without_pooler)} tensors of {found.__name__}, such as "
            f"{without_pooler[0]}; expected whole weights: fetch or save them again"
        )
    return model, not missing


def _features(model: Any, inputs: dict[str, Any], output: Any, pools: bool) -> dict[str, "torch.Tensor"]:
    """Returns what each layer makes of the pictures: [pictures, width] each."""
    states = output.hidden_states
    if not states:
        raise ValueError(f"{type(model).__name__} returns no hidden states; expected another encoder")
    if not _is_timm(model.config):
        states = states[1:]  # the first is the embedding, or the picture itself (DINOv3 ConvNeXt)
    found = {f"layer.{index}": _average(model.config, inputs, state) for index, state in enumerate(states)}
    if pools and getattr(output, "pooler_output", None) is not None:
        found[POOLED] = output.pooler_output.flatten(1)
    return found


def _average(config: Any, inputs: dict[str, Any], state: "torch.Tensor") -> "torch.Tensor":
    if state.ndim == 4:
        return state.mean(dim=(2, 3))  # [pictures, width, rows, columns]
    if "pixel_attention_mask" in inputs:  # SigLIP 2 with patches of any number, padded at the end
        mask: torch.Tensor = inputs["pixel_attention_mask"].to(state.dtype)[..., None]  # [pictures, patches, 1]
        return (state * mask).sum(dim=1) / mask.sum(dim=1)
    return state[:, _num_prefix_tokens(config, inputs["pixel_values"], state.shape[1]) :].mean(dim=1)


def _num_prefix_tokens(config: Any, pixels: "torch.Tensor", num_tokens: int) -> int:
    """Returns how many tokens precede the patches: class, registers, distillation; none in models of stages (Swin)."""
    size = getattr(config, "patch_size", None)
    if size is None:
        return 0
    rows, columns = (size, size) if isinstance(size, int) else size
    return int(max(0, num_tokens - (pixels.shape[-2] // rows) * (pixels.shape[-1] // columns)))
