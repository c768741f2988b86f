"""Fixtures shared by all tests: one untrained pocket checkpoint a session, and its layout."""

from pathlib import Path

import pytest

from models.layout import Layout, layout_of
from models.pocket import PocketShape, write_pocket_checkpoint
from tracking.command import quiet_libraries

quiet_libraries()


@pytest.fixture(scope="session")
def pocket_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pocket checkpoint (seed 0), shared by the session: copy it before changing anything in it."""
    directory = tmp_path_factory.mktemp("pocket") / "checkpoint"
    write_pocket_checkpoint(directory, shape=PocketShape(), seed=0)
    return directory


@pytest.fixture(scope="session")
def pocket_layout(pocket_checkpoint: Path) -> Layout:
    return layout_of(pocket_checkpoint)
