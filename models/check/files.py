"""Do a checkpoint's configuration and files fit its family's record? Of the weights, headers alone are read."""

from collections import Counter
from pathlib import Path
from typing import Any

from models.blocks import ALL_REGIONS, BLOCKS, make_partition, resolve
from models.check.outcome import Outcome, absent, fails, holds
from models.checkpoint import Checkpoint, open_checkpoint
from models.completeness import check_complete
from models.families import Family
from models.layout import Layout, layout_from_shapes, shapes_from_config
from models.loading import load_processor
from models.processor import check_template, missing_files
from models.shards import DTYPES
from models.tying import tie_flags

NUM_NAMED = 3
"""Names printed per finding."""
NO_WEIGHTS = "the folder holds no weights"


def has_weights(directory: Path) -> bool:
    return any(directory.glob("*.safetensors"))


def unplaced(family: Family, names: list[str]) -> list[str]:
    """Returns the canonical names that fit no decoder layer and no region."""
    found = []
    for name in names:
        try:
            family.place(name)
        except ValueError:
            found.append(name)
    return found


def check_placing(config: dict[str, Any], family: Family) -> tuple[Outcome, Layout | None]:
    """Places every parameter of the model that a configuration describes; returns the layout if all have a place."""
    shapes, tied = shapes_from_config(config)
    if lost := unplaced(family, list(shapes)):
        named = ", ".join(lost[:NUM_NAMED])
        return fails("placing", f"{len(lost)} of {len(shapes)} parameters fit no layer and no region: {named}"), None
    layout = layout_from_shapes(family, shapes, tied=tied)
    partition = make_partition(layout.num_layers)
    present = dict.fromkeys(parameter.region for parameter in layout if parameter.region != "llm")
    expressions = [*BLOCKS, *present]
    counted = Counter(name for expression in expressions for name in resolve([expression], layout, partition).names)
    wrong = [name for name in shapes if counted[name] != 1]
    if wrong:
        return fails("placing", f"{wrong[0]} belongs to {counted[wrong[0]]} of {', '.join(expressions)}"), layout
    parts = _without_part(layout)
    if parts:
        return fails("placing", f"neither .attn nor .mlp has {parts[0]} ({len(parts)} such)"), layout
    detail = f"{len(shapes)} parameters, each in one block or region, and in a layer in .attn or .mlp"
    return holds("placing", detail), layout


def _without_part(layout: Layout) -> list[str]:
    """Returns the parameters of decoder layers that are in neither or in both of `.attn` and `.mlp`."""
    partition = make_partition(layout.num_layers)
    counted = Counter(name for part in ("llm.attn", "llm.mlp") for name in resolve([part], layout, partition).names)
    return [parameter.name for parameter in layout if parameter.region == "llm" and counted[parameter.name] != 1]


def region_table(layout: Layout) -> list[str]:
    """Returns one line per block and region: tensors and elements."""
    partition = make_partition(layout.num_layers)
    lines = []
    for place in (*BLOCKS, *ALL_REGIONS):
        region = "llm" if place in BLOCKS else place
        members = [
            parameter
            for parameter in layout
            if parameter.region == region
            and (region != "llm" or (parameter.index is not None and partition.block_of(parameter.index) == place))
        ]
        if members:
            elements = sum(parameter.num_elements for parameter in members)
            lines.append(f"  {place:<10}{len(members):>6} tensors {elements:>16,} elements")
    return lines


def check_names(directory: Path, layout: Layout) -> tuple[Outcome, Checkpoint | None]:
    """Compares the names and shapes in the files with the model's parameters, through the record's spellings."""
    if not has_weights(directory):
        return absent("names", NO_WEIGHTS), None
    try:
        checkpoint = open_checkpoint(directory)
        check_complete(checkpoint, layout)
    except ValueError as error:
        return fails("names", str(error)), None
    other = sum(stored.name != stored.name_on_disk for stored in checkpoint.tensors.values())
    spelled = f"{other} of them spelled otherwise in the files" if other else "spelled in the files as in memory"
    return holds("names", f"{len(checkpoint.tensors)} stored tensors are exactly the model's, {spelled}"), checkpoint


def check_tying(config: dict[str, Any], layout: Layout, checkpoint: Checkpoint | None) -> Outcome:
    """Says whether the head is the embedding matrix, and by which flags; `check_complete` has compared the files."""
    flags = ", ".join(f"{name} {str(value).lower()}" for name, value in tie_flags(config).items()) or "no flag"
    stored = ""
    if checkpoint is not None:
        has_head = any(checkpoint.family.place(name)[0] == "head" for name in checkpoint.tensors)
        stored = f"; {'a' if has_head else 'no'} head in the files"
    return holds("tying", f"{'tied' if layout.tied else 'not tied'} ({flags}{stored})")


def check_dtypes(checkpoint: Checkpoint | None) -> Outcome:
    """Lists the stored dtypes; `open_checkpoint` refuses those that would not survive loading."""
    if checkpoint is None:
        return absent("dtypes", f"{NO_WEIGHTS} that can be opened (model.safetensors or shards with an index)")
    counts = Counter(DTYPES[stored.dtype][0] for stored in checkpoint.tensors.values())
    return holds("dtypes", ", ".join(f"{number} tensors in {dtype}" for dtype, number in counts.most_common()))


def check_processor_files(directory: Path, family: Family) -> Outcome:
    """Loads the tokenizer and the image processor, without which no prompt can be read, and renders a prompt."""
    kind = "a tokenizer" if family.text_only else "a tokenizer and an image processor"
    missing = missing_files(directory, family)
    if missing and not has_weights(directory):
        return absent("processor", f"{NO_WEIGHTS} and lacks {', '.join(missing)}")
    if missing:
        return fails("processor", f"lacks {', '.join(missing)}: no prompt can be read")
    try:
        processor = load_processor(directory)
        check_template(processor, directory)
    except ValueError as error:
        return fails("processor", str(error).removeprefix(f"{directory}: "))
    return holds("processor", f"{kind} can be loaded and {'fits' if family.text_only else 'fit'} the model")
