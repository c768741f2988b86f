"""Which folders name a set of pairs: its own, the output directory of its build, and a folder of such."""

import re
from pathlib import Path

import pytest

from analyze.swap.command import load_sets
from data_builders.build import main as build
from data_builders.pairs.files import find_set, find_sets
from data_builders.validate.command import main as validate


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a build of four pairs."""
    directory = tmp_path_factory.mktemp("pairs") / "digits"
    build(["pocket_pairs", "--num-pairs", "4", "--num-workers", "1", "--output-dir", str(directory)])
    return directory


def test_validate_and_swap_take_the_same_folders(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for named in (built, built / "data", built.parent):
        assert find_sets(named) == [built / "data"] and find_set(named) == built / "data"
        (one,) = load_sets([str(named)])
        assert (one.name, one.directory, len(one.pairs)) == ("digits", built / "data", 4)
        validate([str(named)])
        assert f"{built / 'data'}: 4 pairs" in capsys.readouterr().out


def test_a_folder_below_a_set_is_answered_with_the_set(built: Path) -> None:
    for below in ("images", "gone"):
        with pytest.raises(ValueError, match=re.escape(f"did you mean {built / 'data'}?")):
            load_sets([str(built / "data" / below)])


def test_one_set_is_not_chosen_among_several(built: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(built)
    with pytest.raises(ValueError, match=r"holds 2 sets of pairs; name one of .*a/data, .*b/data"):
        find_set(tmp_path)
