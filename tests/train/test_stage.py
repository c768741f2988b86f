from pathlib import Path

import pytest

from train.freeze import FreezeArguments
from train.stage import check_dtype, open_start


def test_a_type_that_would_round_frozen_tensors_is_refused(pocket_checkpoint: Path) -> None:
    start = open_start(str(pocket_checkpoint), FreezeArguments(freeze=["mid"]))
    with pytest.raises(ValueError, match=r"dtype bfloat16 would round the frozen tensor .*layers\.2.* float32"):
        check_dtype(start, "bfloat16")
    check_dtype(start, "float32")
    check_dtype(start, None)


def test_any_type_will_do_where_nothing_is_frozen(pocket_checkpoint: Path) -> None:
    check_dtype(open_start(str(pocket_checkpoint), FreezeArguments()), "bfloat16")
