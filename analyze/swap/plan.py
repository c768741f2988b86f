"""What is swapped, in which pairs? Modes, sets of pairs and units of work, before a model is loaded.

    from    the source's picture in all layers >= k (the paper's code); k = 0 is the full swap
    only    in layer k alone
    window  in layers k … k + w - 1
    k = L   no swap, in every mode

A decoder of L layers has the variants k = 0 … L of a mode.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_builders.pairs.files import DATA_DIR, find_sets, read_pairs
from data_builders.pairs.pair import Pair

MODES: dict[str, Callable[[int, int, int], range]] = {
    "from": lambda layer, num_layers, window: range(layer, num_layers),
    "only": lambda layer, num_layers, window: range(layer, min(layer + 1, num_layers)),
    "window": lambda layer, num_layers, window: range(layer, min(layer + window, num_layers)),
}
"""Name -> the layers that a swap at a layer takes from the source."""


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """One folder of pairs under the name that tables give it."""

    name: str
    directory: Path
    pairs: list[Pair]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one record is about: a pair in one mode."""

    pair_set: PairSet
    pair: Pair
    mode: str

    @property
    def key(self) -> str:
        return f"{self.pair_set.name}/{self.pair.id}/{self.mode}"

    @property
    def head(self) -> dict[str, str]:
        """What a record says of it first."""
        return {
            "key": self.key,
            "set": self.pair_set.name,
            "id": self.pair.id,
            "task": self.pair.task,
            "mode": self.mode,
        }


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is loaded, asked and swapped."""

    window: int
    prompt_style: str
    system_prompt: str | None
    answer_prefix: str
    box_space: str | None
    max_new_tokens: int
    batch_size: int
    dtype: str
    attn_implementation: str


def load_sets(folders: Sequence[str], limit: int | None = None) -> list[PairSet]:
    """Reads the sets in these folders (`find_sets`); each is named after its folder, or after the run that built it.

    Raises:
        ValueError: where two have the same name, or one cannot be read.
    """
    sets: list[PairSet] = []
    for directory in [place for folder in folders for place in find_sets(Path(folder))]:
        resolved = directory.resolve()
        name = resolved.parent.name if resolved.name == DATA_DIR else resolved.name
        for other in sets:
            if other.name == name:
                raise ValueError(f"{other.directory} and {directory} are both named {name!r}; swap them in two runs")
        sets.append(PairSet(name=name, directory=directory, pairs=read_pairs(directory)[:limit]))
    return sets


def plan_units(sets: Sequence[PairSet], modes: Sequence[str], left_out: Collection[tuple[str, str]]) -> list[Unit]:
    """Returns every pair in every mode, in the order of the records.

    Args:
        sets: the pairs.
        modes: some of `MODES`.
        left_out: names of sets and ids of pairs that cannot be swapped.
    """
    return [
        Unit(pair_set=each, pair=pair, mode=mode)
        for mode in modes
        for each in sets
        for pair in each.pairs
        if (each.name, pair.id) not in left_out
    ]


def swapped_layers(mode: str, num_layers: int, window: int) -> list[range]:
    """Returns the layers that each variant k = 0 … L of a mode takes from the source."""
    return [MODES[mode](layer, num_layers, window) for layer in range(num_layers + 1)]
