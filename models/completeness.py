"""Does a checkpoint contain exactly the tensors of its model, with their shapes? Checked before expensive work.

Transformers initialises missing tensors at random and ignores extra ones, with a warning at most.
"""

from collections import Counter
from collections.abc import Mapping

from models.checkpoint import INDEX_FILE, Checkpoint, is_tied_duplicate, stored_layout
from models.foreign import CONFIG_FILE
from models.layout import Layout, Parameter, config_value, layer_kind
from models.shards import FLOATING
from models.tying import explain_lost_head, is_tied, tie_flags
from tracking.command import did_you_mean


def check_complete(checkpoint: Checkpoint, layout: Layout) -> None:
    """Compares a checkpoint with its model's parameters (`layout_of`); a tied duplicate with equal bytes is allowed.

    Raises:
        ValueError: naming the file and the tensor that is missing, extra, or of another shape.
    """
    _check_tied_head(checkpoint, tied=layout.tied)
    missing = [name for name in layout.parameters if name not in checkpoint.tensors]
    extra = [
        name
        for name in checkpoint.tensors
        if name not in layout.parameters and not (layout.tied and is_tied_duplicate(checkpoint, name))
    ]
    if missing:
        raise ValueError(
            f"{_place(checkpoint)}: lacks {missing[0]!r}, which {CONFIG_FILE} asks for "
            f"({len(missing)} such){did_you_mean(missing[0], extra)}{_about_head(checkpoint, missing[0])}"
        )
    if extra:
        raise ValueError(
            f"{checkpoint.tensors[extra[0]].file}: holds {extra[0]!r}, which {CONFIG_FILE} does not describe "
            f"({len(extra)} such){did_you_mean(extra[0], layout.parameters)}"
        )
    _check_floating(checkpoint, layout)
    for parameter in layout:
        _check_shape(checkpoint, parameter.name, parameter.shape, f"{CONFIG_FILE} asks for")


def check_against_config(checkpoint: Checkpoint) -> None:
    """Compares a checkpoint with the counts and widths in `config.json`, without building a model and without torch.

    It checks fewer shapes than `check_complete`, and does not notice a parameter that is missing from all layers.

    Raises:
        ValueError: naming the file and the tensor.
    """
    config, family = checkpoint.config, checkpoint.family
    _check_tied_head(checkpoint, tied=is_tied(config))
    layout = stored_layout(checkpoint)
    _check_floating(checkpoint, layout)
    optional = (*family.optional_regions, *family.carried, *("head",) * layout.tied)
    present = {parameter.region for parameter in layout}
    for region, prefix in family.regions:
        if region not in present and region not in optional:
            raise ValueError(
                f"{_place(checkpoint)}: lacks {prefix + '*'!r}, the {region} of a {family.model_type}"
                f"{_about_head(checkpoint, prefix)}"
            )
    _check_stack(checkpoint, layout, "llm", config_value(config, *family.num_layers_key))
    if family.num_vision_blocks_key:
        _check_stack(checkpoint, layout, "vision", config_value(config, *family.num_vision_blocks_key))
    _check_kinds(checkpoint, layout)
    section = family.num_layers_key[:-1]
    hidden, vocabulary = (config_value(config, *section, key) for key in ("hidden_size", "vocab_size"))
    shapes = {"embed": (vocabulary, hidden), "head": (vocabulary, hidden), "norm": (hidden,)}
    for parameter in layout:
        shape = shapes.get(parameter.region, ())
        if shape and all(type(size) is int for size in shape):
            _check_shape(checkpoint, parameter.name, shape, f"{CONFIG_FILE} asks for")


def _check_floating(checkpoint: Checkpoint, layout: Layout) -> None:
    """Rejects weights stored as integers: quantised or damaged."""
    for name in layout.parameters:
        stored = checkpoint.tensors[name]
        if stored.dtype not in FLOATING:
            raise ValueError(
                f"{stored.file}: tensor {name!r} is {stored.dtype}; expected one of {', '.join(FLOATING)} "
                "(quantised weights are not read: name the checkpoint they were made from)"
            )


def _check_tied_head(checkpoint: Checkpoint, *, tied: bool) -> None:
    """Rejects a stored head that differs from the embedding matrix although the configuration ties them.

    Transformers 5.23 loads such a file untied, with a warning; comparing, training or splicing one of the two tensors
    would then miss the other. Flags that contradict each other are resolved before (`models/tying.py`).
    """
    places = {checkpoint.family.place(name)[0]: name for name in checkpoint.tensors}
    head = places.get("head")
    if tied and head and "embed" in places and not is_tied_duplicate(checkpoint, head):
        flags = " and ".join(name for name, value in tie_flags(checkpoint.config).items() if value is True)
        raise ValueError(
            f"{checkpoint.tensors[head].file}: {head!r} differs from {places['embed']!r}, while {CONFIG_FILE} ties the "
            f"two ({flags}); set {flags} to false if both tensors are meant, or remove the head"
        )


def _about_head(checkpoint: Checkpoint, name: str) -> str:
    is_head = any(region == "head" and name.startswith(prefix) for region, prefix in checkpoint.family.regions)
    return explain_lost_head(checkpoint.config) if is_head else ""


def _check_stack(checkpoint: Checkpoint, layout: Layout, region: str, count: object) -> None:
    """Compares layers of one kind with each other, and their number with the configuration, if it states one."""
    layers: dict[int, dict[str, Parameter]] = {}
    for parameter in layout:
        if parameter.region == region and parameter.index is not None:
            layers.setdefault(parameter.index, {})[parameter.rest] = parameter
    stack = {"llm": checkpoint.family.layers, "vision": checkpoint.family.vision_blocks}[region]
    number = count if type(count) is int else len(layers)
    absent = sorted(set(range(number)) - set(layers))
    beyond = sorted(set(layers) - set(range(number)))
    if absent:
        raise ValueError(
            f"{_place(checkpoint)}: lacks {f'{stack}{absent[0]}.*'!r} ({len(absent)} such), "
            f"while {CONFIG_FILE} asks for {number} of these"
        )
    if beyond:
        parameter = next(iter(layers[beyond[0]].values()))
        raise ValueError(
            f"{checkpoint.tensors[parameter.name].file}: holds {parameter.name!r}, while {CONFIG_FILE} asks for "
            f"{number} of these, 0 to {number - 1}"
        )
    by_kind: dict[str, dict[int, dict[str, Parameter]]] = {}
    for index, layer in sorted(layers.items()):
        kind = checkpoint.family.kind_of(layer) if region == "llm" else ""
        kind = kind or (layer_kind(checkpoint.config, checkpoint.family, index) if region == "llm" else "")
        by_kind.setdefault(kind, {})[index] = layer
    for alike in by_kind.values():
        _compare_layers(checkpoint, alike, f"{stack}")


def _compare_layers(checkpoint: Checkpoint, layers: Mapping[int, Mapping[str, Parameter]], stack: str) -> None:
    """Compares layers of one kind with each other."""
    held = Counter(rest for layer in layers.values() for rest in layer)
    usual = {rest: Counter(layer[rest].shape for layer in layers.values() if rest in layer) for rest in held}
    for index, layer in layers.items():
        for rest, shapes in usual.items():
            name = f"{stack}{index}.{rest}"
            if rest in layer:
                _check_shape(checkpoint, name, shapes.most_common(1)[0][0], "others of its kind have")
                if held[rest] * 2 < len(layers):
                    raise ValueError(
                        f"{checkpoint.tensors[name].file}: holds {name!r}, which the other layers do not have"
                    )
            elif held[rest] * 2 >= len(layers):
                raise ValueError(f"{_place(checkpoint)}: lacks {name!r}, which the other layers have")


def _check_kinds(checkpoint: Checkpoint, layout: Layout) -> None:
    """Compares the kind of each decoder layer with `layer_types`: a layer of one kind cannot stand for another.

    Transformers 5.23 would take the MLP and the norms only, and initialise the attention at random.
    """
    family = checkpoint.family
    named = config_value(checkpoint.config, *family.num_layers_key[:-1], "layer_types")
    if not family.layer_kinds or not isinstance(named, list):
        return
    found = layout.layer_kinds
    if len(named) != len(found):
        raise ValueError(
            f"{checkpoint.directory / CONFIG_FILE}: layer_types has {len(named)} entries for {len(found)} decoder "
            "layers; expected one per layer"
        )
    for index, (kind, expected) in enumerate(zip(found, named, strict=True)):
        if kind != expected:
            parts = f"{family.layers}{index}.{dict(family.layer_kinds).get(expected, '')}*"
            raise ValueError(
                f"{_place(checkpoint)}: decoder layer {index} is {kind or 'of no known kind'}, while layer_types in "
                f"{CONFIG_FILE} has {expected!r}, which needs {parts!r}"
            )


def _check_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], said: str) -> None:
    stored = checkpoint.tensors[name]
    if stored.shape != shape:
        raise ValueError(f"{stored.file}: tensor {name!r} has the shape {list(stored.shape)}; {said} {list(shape)}")


def _place(checkpoint: Checkpoint) -> str:
    """Returns the file that should have listed a missing tensor."""
    files = {stored.file for stored in checkpoint.tensors.values()}
    return str(checkpoint.directory / INDEX_FILE if len(files) > 1 else next(iter(files)))
