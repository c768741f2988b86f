"""Fixtures of the splice tests: two donors, of any depth, in both spellings, whole and sharded."""

from collections.abc import Callable

import pytest

from models.pocket import write_pocket_checkpoint
from tests.merge.donors import Donors, narrow, respell


@pytest.fixture(scope="session")
def make_donors(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Donors]:
    """Returns a maker of two donors of a depth: `in` as the hub spells it in one file, `rl` as memory does in five."""
    made: dict[tuple[int, bool, bool], Donors] = {}

    def make(num_layers: int, *, tied: bool = True, swapped: bool = False) -> Donors:
        key = num_layers, tied, swapped
        if key not in made:
            root = tmp_path_factory.mktemp("donors")
            paths = {}
            for seed, name in enumerate(("in", "rl")):
                write_pocket_checkpoint(root / name, shape=narrow(num_layers, tied=tied), seed=seed)
                paths[name] = root / name
            spelt = "in" if swapped else "rl"
            paths[spelt] = respell(paths[spelt], root / f"{spelt}-sharded", num_shards=5)
            made[key] = Donors(paths)
        return made[key]

    return make


@pytest.fixture(scope="session")
def donors(make_donors: Callable[..., Donors]) -> Donors:
    """Two tied donors of six layers: read them only."""
    return make_donors(6)
