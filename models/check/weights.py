"""Do names, splices and weight changes hold for a family? Checked on its small random copy, byte by byte."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyze.deltas.change import Comparison, measure_many
from analyze.deltas.plan import measurable
from analyze.deltas.spectra import singular_values
from merge.recipes.plan import make_plan
from merge.recipes.recipe import Blend, Owner, Recipe
from merge.splice import write_splice
from merge.tensors.live import LiveSplicer
from models.blocks import block_names, make_partition
from models.check.outcome import Outcome, fails, holds, within
from models.check.small import Small
from models.checkpoint import WEIGHTS_FILE, Checkpoint, cast_bytes, open_checkpoint, write_like
from models.families import Family
from models.foreign import CONFIG_FILE
from models.layout import stored_tensors
from models.loading import load_model
from models.shards import write_safetensors

if TYPE_CHECKING:
    import torch

SHIFT = 0.01
"""Standard deviation of the change between the copy and the other donor."""
ENERGY_TOLERANCE = 1e-9
SPECTRUM_TOLERANCE = 1e-5


def rewrite(
    source: Path,
    target: Path,
    *,
    change: Callable[[str, "torch.Tensor"], "torch.Tensor"] | None = None,
    respell: Callable[[str], str] = lambda name: name,
) -> Path:
    """Writes a checkpoint in one file, its tensors (by canonical name) changed or its names on disk respelled."""
    import torch

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    checkpoint = open_checkpoint(source)
    names = {respell(stored.name_on_disk): stored for stored in checkpoint.tensors.values()}

    def data(name: str) -> bytes | memoryview:
        stored = names[name]
        if change is None:
            return checkpoint.data(stored.name)
        changed = change(stored.name, checkpoint.tensor(stored.name)).contiguous()
        return changed.flatten().view(torch.uint8).numpy().tobytes()

    entries = [(name, stored.dtype, stored.shape) for name, stored in names.items()]
    write_safetensors(target / WEIGHTS_FILE, entries, data)
    return target


def noise(seed: int) -> Callable[[str, "torch.Tensor"], "torch.Tensor"]:
    """Returns a change that moves every element at random."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def change(_: str, tensor: "torch.Tensor") -> "torch.Tensor":
        return (tensor.float() + SHIFT * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)

    return change


def donors(small: Small) -> dict[str, str]:
    """Returns the copy and a second one that differs from it in every tensor."""
    other = small.folder / "other"
    if not other.exists():
        rewrite(small.directory, other, change=noise(7))
    return {"in": str(small.directory), "rl": str(other)}


def spelled_prefixes(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the canonical prefixes that a checkpoint's files spell otherwise, with their spelling."""
    found: dict[str, str] = {}
    for stored in checkpoint.tensors.values():
        for prefix, canonical in checkpoint.family.spellings:
            if stored.name_on_disk.startswith(prefix):
                found.setdefault(canonical, prefix)
                break
    return found


def respelling(family: Family, prefixes: Mapping[str, str]) -> Callable[[str], str]:
    """Returns a function from any spelling of a name to the one with these prefixes (canonical -> in files)."""

    def respell(name: str) -> str:
        canonical = family.canonical(name)
        for known, prefix in sorted(prefixes.items(), key=lambda pair: -len(pair[0])):
            if canonical.startswith(known):
                return prefix + canonical.removeprefix(known)
        return canonical

    return respell


def check_spellings(small: Small, checkpoint: Checkpoint | None) -> Outcome:
    """Checks that names survive the way from memory to files and back, in every spelling of the record.

    Transformers must load the spelling that it writes itself and, if there are weights, the one of their files.
    """
    import torch

    family, names = small.family, list(small.layout.parameters)
    for prefix, canonical in family.spellings:
        for name in names:
            if name.startswith(canonical):
                spelled = prefix + name.removeprefix(canonical)
                if family.canonical(spelled) != name:
                    return fails("spellings", f"{spelled} in a file is read as {family.canonical(spelled)}, not {name}")
    try:
        written = open_checkpoint(small.directory)
    except ValueError as error:
        return fails("spellings", f"what Transformers writes is not read: {error}")
    if lost := sorted(set(names) ^ set(written.tensors)):
        return fails("spellings", f"Transformers writes other tensors than it holds in memory: {', '.join(lost[:3])}")
    spelled_as = spelled_prefixes(checkpoint) if checkpoint is not None else {}
    start = stored_tensors(small.model)
    if spelled_as:
        respelt = rewrite(small.directory, small.folder / "respelt", respell=respelling(family, spelled_as))
        loaded = stored_tensors(load_model(respelt, dtype="float32"))
        wrong = [name for name in names if not torch.equal(loaded[name], start[name])]
        if wrong:
            return fails("spellings", f"in the files' spelling, Transformers loads another {wrong[0]}")
        again = small.folder / "again"
        again.mkdir()
        write_like(again, start=written, weights=open_checkpoint(respelt))
        back = open_checkpoint(again)
        for name, stored in written.tensors.items():
            found = back.tensors[name]
            if found.name_on_disk != stored.name_on_disk or back.data(name) != written.data(name):
                return fails("spellings", f"{name}, respelled and written back, has another name or other bytes")
    ways = "the files' spelling and the one" if spelled_as else "the one"
    return holds("spellings", f"{len(names)} names; Transformers loads {ways} that it writes, back to the same bytes")


def check_precision(small: Small) -> Outcome:
    """Loads and saves the copy in bf16, with the tensors in fp32 that the family keeps so: bits and dtypes stay."""
    import torch

    mixed, raw, again = (small.folder / f"precision-{name}" for name in ("start", "raw", "again"))
    start = write_in_bf16(open_checkpoint(small.directory), mixed)
    kept = sum(stored.dtype == "F32" for stored in start.tensors.values())
    model = load_model(mixed)
    for name, tensor in stored_tensors(model).items():
        stored = start.tensor(name)
        if tensor.dtype != stored.dtype or not torch.equal(tensor, stored):
            return fails("precision", f"{name} is stored in {stored.dtype} and loaded in {tensor.dtype}, or differs")
    model.save_pretrained(raw)
    again.mkdir()
    write_like(again, start=start, weights=open_checkpoint(raw))
    end = open_checkpoint(again)
    for name, stored_tensor in start.tensors.items():
        if end.tensors[name].dtype != stored_tensor.dtype or end.data(name) != start.data(name):
            return fails("precision", f"{name}, loaded and saved, has another dtype or other bits")
    return holds("precision", f"{len(start.tensors)} tensors in bf16 ({kept} of them kept in fp32) loaded and saved")


def write_in_bf16(source: Checkpoint, target: Path) -> Checkpoint:
    """Writes a checkpoint in bf16, apart from the tensors that its family keeps in fp32."""
    shutil.copytree(source.directory, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = "bfloat16"
    (target / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    tensors = {stored.name_on_disk: stored for stored in source.tensors.values()}
    dtypes = {name: "F32" if source.family.keeps_float32(own.name) else "BF16" for name, own in tensors.items()}
    entries = [(name, dtypes[name], own.shape) for name, own in tensors.items()]
    write_safetensors(target / WEIGHTS_FILE, entries, lambda name: cast_bytes(source, tensors[name].name, dtypes[name]))
    return open_checkpoint(target)


def check_splice(small: Small) -> Outcome:
    """Splices the copy with the other donor: written, loaded and in memory are the same, and each tensor its donor's.

    A block of each donor, an interpolation, and every region from the second donor.
    """
    import torch

    paths = donors(small)
    opened = {name: open_checkpoint(Path(path)) for name, path in paths.items()}
    halfway = Blend(start="in", end="rl", alpha=0.5)
    regions = dict.fromkeys(small.regions, "rl")
    blocks: dict[str, Owner] = {"early": "in", "mid": "rl", "late": "in"}
    recipe = Recipe(donors=paths, blocks=blocks, rest={**regions})
    mixed = Recipe(donors=paths, blocks={**blocks, "late": halfway}, rest={**regions, "norm": halfway})
    partition = make_partition(small.layout.num_layers)
    splicer = LiveSplicer()
    for number, asked in enumerate((recipe, mixed)):
        plan = make_plan(asked)
        directory = write_splice(plan, small.folder / f"splice-{number}", max_shard_bytes=None)
        written, loaded = open_checkpoint(directory), stored_tensors(load_model(directory))
        for name, parameter in stored_tensors(splicer.splice(plan)).items():
            place = block_names(small.layout.parameters[name], partition)
            owner = {**asked.blocks, **asked.rest}[place]
            if isinstance(owner, str) and written.data(name) != opened[owner].data(name):
                return fails("splice", f"{name} of {place} is not byte for byte the donor's")
            if not torch.equal(parameter, loaded[name]):
                return fails("splice", f"{name} differs between the written splice and the one in memory")
            if not torch.equal(loaded[name], written.tensor(name)):
                return fails("splice", f"{name} is loaded otherwise than it is stored")
    return holds(
        "splice", f"{len(small.layout.parameters)} tensors are their donors' bytes; loaded and in memory equal"
    )


def check_deltas(small: Small) -> Outcome:
    """Compares energies, counts and spectra of weight changes with NumPy's in fp64."""
    import torch

    start, end = (open_checkpoint(Path(path)) for path in donors(small).values())
    names = list(measurable(small.layout, (start, end)).parameters)
    comparison = Comparison(checkpoints=(start, end), phases=((0, 1),))
    worst = 0.0
    for change in measure_many(comparison, names):
        before, after = (opened.tensor(change.name).double().numpy() for opened in (start, end))
        found, delta = change.phases[0], after - before
        if found.num_changed != np.count_nonzero(delta):
            return fails("deltas", f"{change.name}: {found.num_changed} changed elements, NumPy counts others")
        for value, expected in (
            (found.delta_squares, float(np.sum(delta**2))),
            (found.start_squares, float(np.sum(before**2))),
        ):
            worst = max(worst, _relative(value, expected))
    spectra = 0.0
    matrices = [p.name for p in small.layout if p.region == "llm" and p.index == 0 and len(p.shape) == 2]
    for name in matrices:
        matrix = end.tensor(name).double() - start.tensor(name).double()
        exact = np.linalg.svd(matrix.numpy(), compute_uv=False)
        values = singular_values(matrix.to(torch.float32)).values
        spectra = max(spectra, float(np.abs(values - exact).max() / exact[0]))
    if not spectra <= SPECTRUM_TOLERANCE:
        return within("deltas", spectra, SPECTRUM_TOLERANCE, "singular values against NumPy's")
    detail = f"energies of {len(names)} tensors and {len(matrices)} spectra are NumPy's"
    return within("deltas", worst, ENERGY_TOLERANCE, detail)


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / expected if expected else math.inf if value else 0.0
