"""What will a splice contain? The owner of every tensor, shard and file, determined before anything is written.

Only headers are read (and the bytes of a tied head that is stored twice); torch is not imported.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from merge.recipes.companions import CompanionFile, find_companions
from merge.recipes.recipe import Blend, Owner, Recipe, donors_of
from models.adapters.merged import APPLIED, MergedCheckpoint
from models.adapters.opening import open_model, other_base
from models.blocks import OWN_REGIONS, Partition, format_layers, make_partition, resolve
from models.checkpoint import (
    INDEX_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    carried_tensors,
    check_same_tensors,
    stored_layout,
    without,
)
from models.completeness import check_against_config
from models.layout import Layout, Parameter, layer_kind
from models.loading import resolved_revision
from models.shards import encode_header, num_bytes, read_header


class ShardEntry(NamedTuple):
    """One tensor of a shard."""

    name_on_disk: str
    name: str
    """Canonical name; for a tied head that the layout stores a second time, the embedding matrix's name."""
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return num_bytes((self.name_on_disk, self.dtype, self.shape))


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One weights file."""

    file: str
    header: bytes = field(repr=False)
    """The header, with its length: everything before the tensors' bytes."""
    entries: tuple[ShardEntry, ...] = field(repr=False)
    """In the order of their offsets."""

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(entry.num_bytes for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The parameters that one line of the recipe names."""

    expression: str
    owner: Owner
    names: tuple[str, ...] = field(repr=False)
    layers: str
    """Decoder layers or vision blocks, ranges inclusive as in papers; empty for anything else."""


@dataclass(frozen=True, kw_only=True)
class SplicePlan:
    """A recipe resolved against its donors."""

    recipe: Recipe
    donors: dict[str, Checkpoint]
    revisions: dict[str, str | None]
    """Donor -> the commit that its hub id resolves to; None for a folder."""
    layout: Layout
    partition: Partition
    parts: tuple[Part, ...]
    owners: dict[str, Owner] = field(repr=False)
    """Canonical name -> owner."""
    shards: tuple[ShardPlan, ...]
    index: bytes | None = field(repr=False)
    """Content of the index; None for a single file."""
    files: tuple[CompanionFile, ...]
    notes: tuple[str, ...]
    """Notes for the user."""

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def make_plan(recipe: Recipe, *, max_shard_bytes: int | None = None) -> SplicePlan:
    """Opens the donors and plans the splice.

    Args:
        recipe: the owner of each part.
        max_shard_bytes: repack the tensors into shards of at most this size, in the first donor's order; by default
            the first donor's shards are kept.

    Raises:
        ValueError: if the donors are incompatible, or a tensor has no owner or two.
    """
    donors = {name: open_model(checkpoint) for name, checkpoint in recipe.donors.items()}
    layout = _shared_layout(donors)
    partition = make_partition(layout.num_layers, partition=recipe.partition, cuts=recipe.cuts)
    parts, notes = _assign(recipe, layout, partition)
    owners = {name: part.owner for part in parts for name in part.names}
    if lacking := _lacking_unread(owners, layout, donors):
        owners |= dict.fromkeys(lacking, next(iter(donors)))
        notes.append(
            f"{len(lacking)} tensors that no layer reads, such as {lacking[0]!r}: from {next(iter(donors))}, because "
            "their owner lacks them"
        )
    _check_dtypes(recipe, donors, owners)
    first = next(iter(donors))
    if first not in recipe.used_donors:
        notes.append(f"{first}: gives the layout on disk and no weights")
    for name, donor in donors.items():
        if isinstance(donor, MergedCheckpoint):
            notes.append(f"{name}: the adapter {donor.adapter.directory} on {donor.base.directory}, {APPLIED}")
            notes += [f"{name}: {warning}" for warning in [other_base(donor)] if warning]
    shards, index = _lay_out(recipe, donors, layout, max_shard_bytes)
    files, lacking = find_companions(recipe.files_donor, donors)
    return SplicePlan(
        recipe=recipe,
        donors=donors,
        revisions={name: resolved_revision(checkpoint) for name, checkpoint in recipe.donors.items()},
        layout=layout,
        partition=partition,
        parts=parts,
        owners={name: owners[name] for name in layout.parameters},
        shards=shards,
        index=index,
        files=files,
        notes=(*notes, *lacking),
    )


def fingerprint(plan: SplicePlan) -> str:
    """Returns a sha256 of what determines the spliced weights: each tensor's owner and its donors' fingerprints.

    It does not depend on the donors' names or on the layout on disk.
    """
    donors = {name: plan.donors[name].fingerprint() for name in plan.recipe.used_donors}
    digest = hashlib.sha256()
    for name, owner in sorted(plan.owners.items()):
        source: list[Any] = [donors[donor] for donor in donors_of(owner)]
        if isinstance(owner, Blend):
            source = [donors[owner.onto or owner.start], donors[owner.start], donors[owner.end], float(owner.alpha)]
        digest.update(json.dumps([name, *source]).encode())
    return digest.hexdigest()


def _shared_layout(donors: Mapping[str, Checkpoint]) -> Layout:
    for donor in donors.values():
        check_against_config(donor)
    (first, start), *others = donors.items()
    layout = stored_layout(start)
    for name, donor in others:
        if donor.family is not start.family:
            raise ValueError(
                f"donor {name} is a {donor.family.model_type}, {first} a {start.family.model_type}; "
                "expected donors of one family"
            )
        check_same_tensors(_loaded(start), _loaded(donor))
        _check_same_kinds(first, start, name, donor, layout.num_layers)
        if stored_layout(donor).tied != layout.tied:
            tied, untied = (first, name) if layout.tied else (name, first)
            raise ValueError(
                f"donor {tied} ties its head to its embeddings, {untied} does not; expected donors that agree"
            )
    return layout


def _check_same_kinds(first: str, start: Checkpoint, name: str, donor: Checkpoint, num_layers: int) -> None:
    """Rejects donors in which a layer of the same number computes in another way, which shapes may not show."""
    for layer in range(num_layers):
        one, other = (layer_kind(checkpoint.config, checkpoint.family, layer) for checkpoint in (start, donor))
        if one and other and one != other:  # a configuration of one kind only may not say which
            raise ValueError(
                f"decoder layer {layer} is of the kind {one!r} in donor {first} and {other!r} in {name} (layer_types "
                "and num_kv_shared_layers in config.json); expected donors whose layers are of the same kinds"
            )


def _lacking_unread(owners: Mapping[str, Owner], layout: Layout, donors: Mapping[str, Checkpoint]) -> list[str]:
    """Returns the tensors of decoder layers that no layer reads (`Family.unread_parts`) and that their owner lacks."""
    return [
        name
        for name in layout.carried
        if layout.parameters[name].region == "llm"
        and any(name not in donors[donor].tensors for donor in donors_of(owners[name]))
    ]


def _loaded(donor: Checkpoint) -> Checkpoint:
    """Returns a donor without the tensors that Transformers does not load, which another one may have lost."""
    return without(donor, carried_tensors(donor))


def _assign(recipe: Recipe, layout: Layout, partition: Partition) -> tuple[tuple[Part, ...], list[str]]:
    """Assigns exactly one owner to every tensor, following the lines of the recipe."""
    parts: list[Part] = []
    notes: list[str] = []
    taken: dict[str, str] = {}
    narrower = [expression for expression in recipe.rest if expression.startswith("vision:")]
    rest = dict(recipe.rest)
    for region in dict.fromkeys(layout.parameters[name].region for name in layout.carried):
        if region != "llm" and region not in rest and len(set(rest.values())) == 1:
            rest[region] = next(iter(rest.values()))
            notes.append(f"{region}: from {rest[region]}, as all other regions")
    if "vision" in rest and narrower:
        rest["vision"] = rest.pop("vision")  # last: gets the rest of the tower; no expression names the stem alone
        notes.append(f"vision: what {' and '.join(narrower)} leave of the tower, the patch embedding included")
    for region in dict.fromkeys(parameter.region for parameter in layout if parameter.region in OWN_REGIONS):
        if region not in rest and len(set(rest.values())) == 1:
            rest[region] = next(iter(rest.values()))
            notes.append(f"{region}: from {rest[region]}, as all other regions")
    for expression, owner in (*recipe.blocks.items(), *rest.items()):
        if layout.family.text_only and expression in ("vision", "projector"):
            notes.append(f"{expression}: a text-only {layout.family.model_type} has none, so its owner has no effect")
            continue
        if layout.tied and expression == "head":
            if owner != rest.get("embed", owner):
                raise ValueError(
                    f"embeddings are tied, so embed and head are one tensor, and the recipe gives embed to "
                    f"{rest['embed']} and head to {owner}; name one owner for both, or leave head out"
                )
            if "embed" in rest:
                continue
        names = resolve([expression], layout, partition).names
        if expression == "vision":
            names = tuple(name for name in names if not taken.get(name, "").startswith("vision:"))
        for name in names:
            if name in taken:
                raise ValueError(
                    f"{name!r} has two owners, by {taken[name]!r} and by {expression!r} of the recipe; "
                    "expected expressions that do not overlap"
                )
            taken[name] = expression
        indices = {layout.parameters[name].index for name in names} - {None}
        parts.append(
            Part(
                expression=expression,
                owner=owner,
                names=names,
                layers=format_layers(index for index in indices if index is not None),
            )
        )
    if layout.tied:
        notes.append("head: embeddings are tied, so the head is the embedding matrix and comes with it")
    free = [parameter for parameter in layout if parameter.name not in taken]
    if free:
        raise ValueError(
            f"the recipe gives no owner to {_describe(free)} ({len(free)} tensors, the first {free[0].name!r}); "
            "every part must be named under blocks or rest"
        )
    return tuple(parts), notes


def _describe(parameters: Sequence[Parameter]) -> str:
    """Describes, in the recipe's terms, which parts some parameters belong to."""
    layers = format_layers({parameter.index or 0 for parameter in parameters if parameter.region == "llm"})
    regions = dict.fromkeys(parameter.region for parameter in parameters if parameter.region != "llm")
    return " and ".join([*([f"decoder layers {layers}"] if layers else []), *regions])


def _check_dtypes(recipe: Recipe, donors: Mapping[str, Checkpoint], owners: Mapping[str, Owner]) -> None:
    for name, owner in owners.items():
        holders = {donor: donors[donor] for donor in recipe.used_donors if name in donors[donor].tensors}
        for donor in donors_of(owner):
            if donor not in holders:
                raise ValueError(
                    f"the recipe takes {name!r} from {donor}, which lacks it (Transformers neither loads nor saves "
                    f"it); take it from {' or '.join(holders) or 'a donor that has it'}"
                )
        one, *others = holders
        expected = donors[one].tensors[name].dtype
        for other in others:
            found = donors[other].tensors[name].dtype
            if found != expected:
                raise ValueError(
                    f"donor {other} stores {name!r} as {found}, {one} as {expected}; a splice copies bytes: "
                    "save one of them in the other's dtype first"
                )


def _lay_out(
    recipe: Recipe, donors: Mapping[str, Checkpoint], layout: Layout, max_shard_bytes: int | None
) -> tuple[tuple[ShardPlan, ...], bytes | None]:
    """Returns the shards and the index: the first donor's own, or repacked."""
    first = donors[next(iter(donors))]
    used = [donors[name] for name in recipe.used_donors]
    files: dict[Path, list[ShardEntry]] = {}
    for stored in first.tensors.values():
        # If a tied donor stores the embedding matrix twice, the stored head comes from the embedding matrix's owner.
        name = stored.name if stored.name in layout.parameters else _embedding(layout)
        dtype = next(donor.tensors[name].dtype for donor in used if name in donor.tensors)
        entry = ShardEntry(stored.name_on_disk, name, dtype, stored.shape)
        files.setdefault(stored.file, []).append(entry)
    metadata = read_header(next(iter(files))).metadata
    same = all(entry.dtype == first.tensors[entry.name].dtype for entries in files.values() for entry in entries)
    if max_shard_bytes is None and same:
        index = first.directory / INDEX_FILE
        shards = tuple(
            ShardPlan(file=file.name, header=_stored_header(file), entries=tuple(entries))
            for file, entries in files.items()
        )
        return shards, index.read_bytes() if index.is_file() else None
    if max_shard_bytes is None:
        packed = {file.name: entries for file, entries in files.items()}
    else:
        packed = _pack([entry for entries in files.values() for entry in entries], max_shard_bytes)
    shards = tuple(
        ShardPlan(
            file=file,
            header=encode_header([(entry.name_on_disk, entry.dtype, entry.shape) for entry in entries], metadata),
            entries=tuple(entries),
        )
        for file, entries in packed.items()
    )
    return shards, None if set(packed) == {WEIGHTS_FILE} else _encode_index(shards)


def _embedding(layout: Layout) -> str:
    return next(parameter.name for parameter in layout if parameter.region == "embed")


def _stored_header(file: Path) -> bytes:
    """Returns the header as it is on disk, so that an unchanged layout keeps it byte for byte."""
    with file.open("rb") as opened:
        return opened.read(min(stored.offset for stored in read_header(file).tensors))


def _pack(entries: Sequence[ShardEntry], max_shard_bytes: int) -> dict[str, list[ShardEntry]]:
    """Fills shards in order; a tensor larger than the limit gets its own shard."""
    shards: list[list[ShardEntry]] = [[]]
    room = max_shard_bytes
    for entry in entries:
        if shards[-1] and entry.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= entry.num_bytes
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


def _encode_index(shards: Sequence[ShardPlan]) -> bytes:
    index = {
        "metadata": {"total_size": sum(entry.num_bytes for shard in shards for entry in shard.entries)},
        "weight_map": {entry.name_on_disk: shard.file for shard in shards for entry in shard.entries},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
