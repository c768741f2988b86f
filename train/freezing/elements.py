"""Which elements of a tensor train? Those that another run changed, or as many at random: an element mask.

The mask of a tensor has one bit per element: true where the element trains. It is the set of elements whose bits differ
between two checkpoints (arXiv 2505.11711 finds that RL changes a small part of them), or a random set of the same size
per tensor, the control. A tensor without such an element is frozen as a whole.

Elements outside the mask get a zero gradient in every backward pass, before the engine reduces, clips or accumulates
it. Adam's moments of them stay zero, and with `weight_decay: 0` a step moves them by exactly zero, also in fp32
masters. Hooks after gradient accumulation see every parameter under ZeRO-3, which hooks on tensors do not (torch 2.8).
As for blocks, this is proved on every saved checkpoint: the elements outside the mask have the start's bits.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from models.checkpoint import Checkpoint, cast_bytes, open_checkpoint
from models.loading import check_checkpoint, local_checkpoint
from models.shards import DTYPES, write_safetensors
from tracking.progress import weighted_progress
from train.freezing.freeze import FreezePlan

if TYPE_CHECKING:
    import torch

ELEMENTS_FILE = "elements.safetensors"
"""In the run directory: per tensor the mask, a bit per element, packed as `numpy.packbits` does."""
ROUNDED = {"bfloat16": "BF16", "float16": "F16"}
"""Name of a dtype -> its name in safetensors files."""
CHUNK = 1 << 22
"""Elements drawn together."""

Mask = Bool[np.ndarray, " elements"]
Packed = UInt8[np.ndarray, " bytes"]


@dataclass(frozen=True, kw_only=True)
class ElementArguments:
    """The elements that train, if not all elements of what trains."""

    train_elements: list[str] = field(
        default_factory=list,
        metadata={
            "help": "two checkpoints, START END: within the parts that train, only elements whose bits differ between "
            "them train; all others stay bit-identical",
            "check": check_checkpoint,
        },
    )
    random_elements: int | None = field(
        default=None,
        metadata={"help": "control of train_elements: a seed; as many elements of each tensor, drawn at random"},
    )

    elements_dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype in which the two checkpoints are compared, such as bfloat16: fp32 training moves every "
            "element a little, and rounding leaves those out that moved least; by default as they are stored"
        },
    )

    def __post_init__(self) -> None:
        if self.elements_dtype not in (None, *ROUNDED):
            raise ValueError(f"elements_dtype is {self.elements_dtype!r}; expected {' or '.join(ROUNDED)}")
        if self.elements_dtype is not None and not self.train_elements:
            raise ValueError("elements_dtype is given without train_elements, which it compares")
        if len(self.train_elements) not in (0, 2):
            raise ValueError(f"train_elements is {' '.join(self.train_elements)}; expected two checkpoints, START END")
        if self.random_elements is not None and not self.train_elements:
            raise ValueError("random_elements is given without train_elements, which gives the number of elements")

    def check_training(self, training: Any, *, lora: bool) -> None:
        """Rejects settings under which elements outside the mask would move, or have no meaning.

        Raises:
            ValueError: with the setting to change.
        """
        if not self.train_elements:
            return
        if lora:
            raise ValueError(
                "train_elements is given with LoRA, whose product changes whole matrices; leave out one of them"
            )
        if training.weight_decay:
            raise ValueError(
                f"train_elements is given with weight_decay {training.weight_decay}, which moves every element; set "
                "weight_decay: 0"
            )


@dataclass(frozen=True)
class Elements:
    """The element masks of a run."""

    source: Mapping[str, Any]
    """The two checkpoints, their fingerprints, and the seed, as recorded in the run's settings."""
    masks: Mapping[str, Packed]
    """Tensor -> packed mask, for every tensor with an element that trains."""
    sizes: Mapping[str, int]
    """Tensor -> number of elements."""

    def mask(self, name: str) -> Mask:
        """Returns which elements of a tensor train, in row-major order."""
        return np.unpackbits(self.masks[name], count=self.sizes[name]).astype(bool)

    def num_training(self) -> int:
        """Returns the number of elements that train."""
        return sum(int(np.unpackbits(packed).sum()) for packed in self.masks.values())

    def sha256(self) -> str:
        """Returns a digest of all masks."""
        digest = hashlib.sha256()
        for name in sorted(self.masks):
            digest.update(f"{name}\0{self.sizes[name]}\0".encode() + self.masks[name].tobytes())
        return digest.hexdigest()


def elements_settings(arguments: ElementArguments) -> dict[str, Any]:
    """Returns what determines the masks, for a run's settings; empty without masks."""
    if not arguments.train_elements:
        return {}
    start, end = (open_checkpoint(local_checkpoint(name)) for name in arguments.train_elements)
    return {
        "train_elements": list(arguments.train_elements),
        "train_elements_fingerprints": [start.fingerprint(), end.fingerprint()],
        "random_elements": arguments.random_elements,
        "elements_dtype": arguments.elements_dtype,
    }


def find_elements(arguments: ElementArguments, run_start: Checkpoint, plan: FreezePlan) -> Elements:
    """Returns the masks of what trains; reads the two checkpoints tensor by tensor.

    Raises:
        ValueError: if a tensor is missing or has another shape in one of the checkpoints, or none of them changed.
    """
    start, end = (open_checkpoint(local_checkpoint(name)) for name in arguments.train_elements)
    for checkpoint in (start, end):
        _check_tensors(checkpoint, run_start, plan)
    masks, sizes = {}, {name: plan.layout.parameters[name].num_elements for name in plan.trainable}
    label = f"comparing {end.directory} with {start.directory}"
    for name in weighted_progress(list(plan.trainable), list(sizes.values()), label=label):
        mask = _differing(start, end, name, arguments.elements_dtype)
        if arguments.random_elements is not None:
            seed = [arguments.random_elements, zlib.crc32(name.encode())]
            mask = draw_mask(int(mask.sum()), mask.size, np.random.default_rng(seed))
        if mask.any():
            masks[name] = np.packbits(mask)
    if not masks:
        raise ValueError(
            f"{end.directory} and {start.directory} are bit-identical in everything that would train; expected two "
            "checkpoints with a difference there"
        )
    return Elements(elements_settings(arguments), masks, {name: sizes[name] for name in masks})


def draw_mask(num_training: int, num_elements: int, rng: np.random.Generator) -> Mask:
    """Returns a mask with exactly `num_training` of `num_elements` elements, each set equally likely."""
    mask = np.zeros(num_elements, bool)
    for first in range(0, num_elements, CHUNK):
        left = num_elements - first
        size = min(CHUNK, left)
        own = num_training if size == left else _hypergeometric(num_training, left, size, rng)
        mask[first + rng.permutation(size)[:own]] = True
        num_training -= own
    return mask


def _hypergeometric(num_training: int, num_left: int, size: int, rng: np.random.Generator) -> int:
    """Returns how many of the elements that train fall into the next chunk."""
    return int(rng.multivariate_hypergeometric([num_training, num_left - num_training], size, method="marginals")[0])


def _check_tensors(checkpoint: Checkpoint, run_start: Checkpoint, plan: FreezePlan) -> None:
    for name in plan.trainable:
        shape = tuple(run_start.tensors[name].shape)
        found = checkpoint.tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            what = "no such tensor" if found is None else f"the shape {list(found.shape)}"
            raise ValueError(
                f"{checkpoint.directory}: {name}: {what}; expected {list(shape)}, as in {run_start.directory}"
            )


def _differing(start: Checkpoint, end: Checkpoint, name: str, rounded_to: str | None = None) -> Mask:
    """Returns which elements differ in their bits, in the start's dtype or rounded to another one."""
    dtype = start.tensors[name].dtype if rounded_to is None else ROUNDED[rounded_to]
    width = f"u{DTYPES[dtype][1]}"
    before, after = (np.frombuffer(cast_bytes(checkpoint, name, dtype), width) for checkpoint in (start, end))
    differs: Mask = before != after
    return differs


def narrow_plan(plan: FreezePlan, moved: Sequence[str], note: str) -> FreezePlan:
    """Returns the plan in which trainable tensors without an element in their mask are frozen."""
    kept = set(moved)
    trainable = tuple(name for name in plan.trainable if name in kept)
    frozen = {*plan.frozen, *plan.trainable} - kept
    ordered = tuple(name for name in plan.layout.parameters if name in frozen)
    return replace(plan, frozen=ordered, trainable=trainable, notes=(*plan.notes, note))


def describe_elements(elements: Elements, plan: FreezePlan, run_start: Checkpoint) -> str:
    """Returns the note on masks that is printed below the table of blocks."""
    total = sum(elements.sizes.values())
    number = elements.num_training()
    dropped = len(plan.trainable) - len(elements.masks)
    first, end = elements.source["train_elements"]
    seed = elements.source["random_elements"]
    rounded = f", rounded to {elements.source['elements_dtype']}" if elements.source["elements_dtype"] else ""
    chosen = f"those changed from {first} to {end}{rounded}"
    chosen += "" if seed is None else f" in number, drawn with seed {seed}"
    frozen = f"; {dropped} tensors have none and are frozen" if dropped else ""
    other = "" if run_start.fingerprint() in elements.source["train_elements_fingerprints"] else (
        f"; note that {first} is not the start of this run"
    )  # fmt: skip
    return (
        f"element mask: {number:,} of {total:,} elements ({number / total:.2%}) train, {chosen}{frozen}; the optimizer "
        f"holds moments for all {total:,}, and the masks take {total:,} bytes more{other}"
    )


def write_elements(file: Path, elements: Elements) -> None:
    """Writes the masks, under their name only once they are complete."""
    entries = [(name, "U8", (packed.size,)) for name, packed in elements.masks.items()]
    partial = file.with_name(f".partial-{file.name}")
    write_safetensors(partial, entries, lambda name: elements.masks[name].tobytes())
    partial.replace(file)


def read_elements(file: Path, sizes: Mapping[str, int], source: Mapping[str, Any]) -> Elements:
    """Reads the masks of a run.

    Args:
        sizes: tensor -> number of elements, of every tensor that may have a mask.

    Raises:
        ValueError: if the file is damaged or is about other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        masks = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); expected the masks of a run") from error
    for name, packed in masks.items():
        if name not in sizes or packed.dtype != np.uint8 or packed.shape != (-(-sizes[name] // 8),):
            raise ValueError(f"{file}: {name}: expected a mask of a tensor of the start, with one bit per element")
    return Elements(source, masks, {name: sizes[name] for name in masks})


def mask_gradients(model: "torch.nn.Module", elements: Elements) -> None:
    """Zeroes the gradients of elements outside the masks, after each backward pass and before the engine sees them.

    Call it before the engine adds hooks of its own: hooks run in the order in which they were added.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_zeroing(elements, name))


def _zeroing(elements: Elements, name: str) -> "Callable[[torch.Tensor], None]":
    import torch

    outside: dict[Any, torch.Tensor] = {}

    def zero(parameter: "torch.Tensor") -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.device not in outside:
            outside[gradient.device] = torch.from_numpy(~elements.mask(name)).to(gradient.device)
        gradient.masked_fill_(outside[gradient.device].view(gradient.shape), 0)

    return zero


def moved_outside(start: Checkpoint, saved: Checkpoint, elements: Elements) -> Iterator[str]:
    """Yields the tensors of which elements outside the mask differ from the start, in the start's dtype."""
    for name in elements.masks:
        if name not in saved.tensors or (_differing(start, saved, name) & ~elements.mask(name)).any():
            yield name
