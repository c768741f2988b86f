"""What does a family look like in small? A random model of a checkpoint's own configuration class, cut down.

Widths, depths and counts become small. What makes an architecture stays: the kinds of decoder layers and their order,
grouped heads, a head size of its own, the sections of rotary embeddings, deepstack, tied embeddings, the vocabulary and
the processor. The copy is in fp32 and takes seconds on a CPU.

Known limit: sizes are recognised by the names that Transformers' configurations give them (`shrink`). A family that
names them otherwise keeps them, and its copy is larger.
"""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint import COMPANION_SUFFIXES, INDEX_FILE
from models.families import Family
from models.foreign import ADAPTER_CONFIG_FILE, CONFIG_FILE
from models.layout import Layout, layout_of
from models.loading import load_model, load_processor
from models.processor import check_template

if TYPE_CHECKING:
    import torch

    from data_builders.prompt_sets.prompts import Prompt

LEFT_OUT = (CONFIG_FILE, INDEX_FILE, ADAPTER_CONFIG_FILE)
"""Companions that the copy does not get: Transformers would apply an adapter to it, or look for other shards."""
MIN_LAYERS = 4
NUM_VISION_BLOCKS = 3
HEAD_SIZE = 16
MIN_ROTARY = 8
"""Rotated elements of a head with several sections: time, height and width need one frequency each."""
MAX_HEADS = 8
SPREAD = 0.08
"""Standard deviation of the random weights, about 1/sqrt(width): at the usual 0.02 so narrow a model hardly attends."""
WINDOW_TOKENS = 32
"""Sliding windows, so that short prompts reach beyond them."""
QUESTIONS = (
    "How many objects are there ?",
    "What colour is the object in the centre of the picture , and where is it ?",
)
"""Of different lengths, so that a batch has padding."""
PICTURES = (((112, 84), (214, 40, 40)), ((112, 84), (40, 80, 210)), ((84, 56), (38, 150, 60)))
"""Size and colour; the first two have equal grids."""


@dataclass(frozen=True)
class Small:
    """A small random copy on disk, with what the checks need of it."""

    directory: Path
    """A checkpoint folder."""
    folder: Path
    """For other files of the checks."""
    no_prompts: str | None
    """Why no prompt can be rendered; None if prompts can be."""

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.directory)

    @property
    def family(self) -> Family:
        return self.layout.family

    @property
    def regions(self) -> list[str]:
        """The regions outside the decoder layers that the model has."""
        return list(dict.fromkeys(parameter.region for parameter in self.layout if parameter.region != "llm"))

    @cached_property
    def processor(self) -> Any:
        assert self.no_prompts is None, self.no_prompts
        return load_processor(self.directory)

    @cached_property
    def model(self) -> Any:
        """The model in fp32 with SDPA, in evaluation mode; checks that change it take a copy."""
        return load_model(self.directory, dtype="float32", attn_implementation="sdpa").eval()

    def another(self) -> Any:
        """Returns a copy of the model, with the same configuration object in all of its parts."""
        return copy.deepcopy(self.model)

    @cached_property
    def pictures(self) -> list[Path]:
        """Pictures on disk; the first two have the same size."""
        from PIL import Image

        paths = []
        for number, (size, colour) in enumerate(PICTURES):
            picture = Image.new("RGB", size, (236, 236, 236))
            picture.paste(colour, (8 + 6 * number, 10, 40, 44))
            paths.append(self.folder / f"picture-{number}.png")
            picture.save(paths[-1])
        return paths

    def questions(self, *, seeing: bool) -> "list[Prompt]":
        """Returns two prompts of different lengths, with a picture each if the model is to see."""
        from data_builders.prompt_sets.prompts import Prompt

        paths = (self.pictures[0], self.pictures[2]) if seeing else (None, None)
        return [
            Prompt(
                id=str(number), ability="vision", question=question, answer="1", answer_kind="number",
                images=() if path is None else (path.name,),
            )
            for number, (question, path) in enumerate(zip(QUESTIONS, paths, strict=True))
        ]  # fmt: skip

    def prompts(self, *, seeing: bool) -> tuple[list[str], list[list[Path]]]:
        """Returns the prompts as text in the chat template, with the pictures of each."""
        from eval.replies.generation import render_prompt

        asked = self.questions(seeing=seeing)
        texts = [render_prompt(self.processor, prompt, style="plain", system_prompt=None) for prompt in asked]
        return texts, [[self.folder / name for name in prompt.images] for prompt in asked]

    def inputs(self, texts: Sequence[str], paths: Sequence[Sequence[Path]]) -> dict[str, "torch.Tensor"]:
        """Returns prompts as the model takes them, padded on the left."""
        from PIL import Image

        images = [[Image.open(path).convert("RGB") for path in own] for own in paths]
        given = {"images": images} if any(images) else {}
        return dict(self.processor(text=list(texts), padding=True, return_tensors="pt", **given))

    def batch(self) -> dict[str, "torch.Tensor"]:
        """Returns the inputs of a training step: prompts with pictures where the model sees, or random tokens."""
        import torch

        if self.no_prompts is None:
            return self.inputs(*self.prompts(seeing=not self.family.text_only))
        (embedding,) = (p for p in self.layout if p.region == "embed")
        generator = torch.Generator().manual_seed(3)
        tokens = torch.randint(0, min(1000, embedding.shape[0]), (2, 24), generator=generator)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def make_small(config: dict[str, Any], family: Family, folder: Path, *, companions: Path | None) -> Small:
    """Writes a small random copy of a model.

    Args:
        config: the model's configuration, as in its `config.json`.
        family: its record.
        folder: a folder, made if it does not exist, for the copy and the files of the checks.
        companions: the folder whose tokenizer, processor and chat template the copy gets; None for none.

    Raises:
        ValueError: if Transformers cannot build the model that the reduced configuration describes.
    """
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    whole = transformers.AutoConfig.for_model(family.model_type, **values)
    reduced = type(whole).from_dict(shrink(whole.to_dict()) | dict.fromkeys(family.idle_parts))
    torch.manual_seed(0)
    model = getattr(transformers, family.auto_class).from_config(
        reduced, dtype=torch.float32, attn_implementation="sdpa"
    )
    _vary(model)
    directory = folder / "checkpoint"
    directory.mkdir(parents=True)
    for file in sorted(companions.iterdir()) if companions is not None else []:
        if file.is_file() and file.suffix in COMPANION_SUFFIXES and file.name not in LEFT_OUT:
            shutil.copyfile(file, directory / file.name)
    settings = directory / "generation_config.json"
    kept = settings.read_bytes() if settings.is_file() else None
    model.save_pretrained(directory)
    if kept is not None:
        settings.write_bytes(kept)
    return Small(directory, folder, _no_prompts(directory, shown=companions))


def _vary(model: Any) -> None:
    """Adds noise to parameters that are constant when a model is made (biases, norms), so that each has an effect."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _no_prompts(directory: Path, *, shown: Path | None) -> str | None:
    """Returns why a copy can render no prompts, with the path of the folder whose files it got; None if it can."""
    from eval.replies.generation import chat_template_of

    try:
        processor = load_processor(directory)
        chat_template_of(processor)
        check_template(processor, directory)
    except ValueError as error:
        reason = str(error).removeprefix(f"{directory}: ").partition("; expected")[0]
        return reason if shown is None else reason.replace(str(directory), str(shown))
    return None


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration (`to_dict`) with small widths, depths and counts."""
    reduced = copy.deepcopy(config)
    decoder = reduced["text_config"] if isinstance(reduced.get("text_config"), dict) else reduced
    hidden = _shrink_decoder(decoder)
    tower = reduced.get("vision_config")
    if isinstance(tower, dict):
        _shrink_tower(tower, hidden)
    return reduced


def _shrink_decoder(decoder: dict[str, Any]) -> int:
    """Reduces a decoder's configuration in place and returns its width."""
    num_heads = decoder["num_attention_heads"]
    num_kv_heads = decoder.get("num_key_value_heads") or num_heads
    width, named = decoder["hidden_size"], decoder.get("head_dim")
    head = named or width // num_heads
    group = max(1, num_heads // num_kv_heads)
    kv_heads = min(2, num_kv_heads)
    heads = kv_heads * min(group, MAX_HEADS // kv_heads)
    head_size = _head_size(decoder)
    hidden: int = heads * head_size
    if head * num_heads != width:  # keys and queries are wider or narrower than the model
        hidden = hidden // 2 if head * num_heads > width else hidden * 2
    decoder |= {"num_attention_heads": heads, "hidden_size": hidden, "initializer_range": SPREAD}
    sizes = {
        "num_key_value_heads": kv_heads, "head_dim": head_size, "intermediate_size": hidden + hidden // 2,
        "global_head_dim": 2 * head_size, "num_global_key_value_heads": kv_heads, "hidden_size_per_layer_input": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "sliding_window": WINDOW_TOKENS,
    }  # fmt: skip
    _replace(decoder, sizes)
    _cut_layers(decoder)
    own: dict[Any, Any] = decoder.get("per_layer_config") or {}  # sizes of single layers, as in Gemma 4
    if own:
        decoder["per_layer_config"] = {key: own[key] for key in own if int(key) < decoder["num_hidden_layers"]}
    for layer in decoder["per_layer_config"].values() if own else ():
        _replace(layer, {**sizes, "head_dim": 2 * head_size})
    for rope in _rotary(decoder):
        if sections := rope.get("mrope_section"):
            rope["mrope_section"] = _scaled(sections, _num_rotated(decoder, rope, head_size) // 2)
    return hidden


def _replace(config: dict[str, Any], sizes: dict[str, int]) -> None:
    """Sets the sizes that a configuration has, unless they are absent, zero or smaller."""
    for key, size in sizes.items():
        if type(config.get(key)) is int and config[key] > 0:
            config[key] = min(size, config[key])
        elif isinstance(config.get(key), list) and key == "intermediate_size":
            config[key] = [size] * len(config[key])


def _cut_layers(decoder: dict[str, Any]) -> None:
    """Keeps the first layers: at least one of every kind, and of those that share keys and values as many."""
    kinds = decoder.get("layer_types")
    first = 0 if not kinds else 1 + max(kinds.index(kind) for kind in set(kinds))
    num_layers = max(MIN_LAYERS, first)
    num_shared = decoder.get("num_kv_shared_layers") or 0
    if num_shared:
        decoder["num_kv_shared_layers"] = num_layers
        num_layers *= 2
    num_layers = min(num_layers, decoder["num_hidden_layers"])
    decoder["num_hidden_layers"] = num_layers
    for key in ("layer_types", "intermediate_size"):
        if isinstance(decoder.get(key), list):
            decoder[key] = decoder[key][:num_layers]


def _head_size(decoder: dict[str, Any]) -> int:
    size = HEAD_SIZE
    for rope in _rotary(decoder):
        while rope.get("mrope_section") and _num_rotated(decoder, rope, size) < MIN_ROTARY:
            size *= 2
    return size


def _rotary(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of rotary embeddings: one set, or one per kind of layer."""
    found = decoder.get("rope_parameters") or {}
    return [found, *(part for part in found.values() if isinstance(part, dict))]


def _num_rotated(decoder: dict[str, Any], rope: dict[str, Any], head_size: int) -> int:
    share: float = rope.get("partial_rotary_factor") or decoder.get("partial_rotary_factor") or 1.0
    return int(head_size * share)


def _scaled(sections: Sequence[int], total: int) -> list[int]:
    """Returns sections in about the same proportion that add up to a total, none of them empty."""
    scaled = [max(1, section * total // sum(sections)) for section in sections]
    while sum(scaled) != total:
        step = 1 if sum(scaled) < total else -1
        shares = [size / section for size, section in zip(scaled, sections, strict=True)]
        scaled[shares.index(min(shares) if step == 1 else max(shares))] += step
    return scaled


def _shrink_tower(tower: dict[str, Any], hidden: int) -> None:
    """Reduces a vision tower's configuration in place; patches and positions stay, the processor depends on them."""
    depth = "depth" if "depth" in tower else "num_hidden_layers"
    num_blocks = min(NUM_VISION_BLOCKS, tower[depth])
    heads, width = 2, 2 * HEAD_SIZE
    sizes = {
        "num_heads": heads, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": HEAD_SIZE,
        "global_head_dim": HEAD_SIZE, "intermediate_size": width + HEAD_SIZE, "mlp_ratio": 2, depth: num_blocks,
    }  # fmt: skip
    _replace(tower, sizes)
    if "embed_dim" in tower:  # Qwen2-VL: the tower's width, while `hidden_size` is the decoder's
        tower |= {"embed_dim": width, "hidden_size": hidden}
    else:
        tower["hidden_size"] = width
    if "out_hidden_size" in tower:
        tower["out_hidden_size"] = hidden
    tower["initializer_range"] = SPREAD
    if listed := tower.get("deepstack_visual_indexes"):
        tower["deepstack_visual_indexes"] = list(range(min(len(listed), num_blocks - 1)))
    if tower.get("fullatt_block_indexes"):
        tower["fullatt_block_indexes"] = [num_blocks - 1]
