"""The run says in one line whether prompts are shared, and where and why they are not."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.sharing.test_equivalence import PROMPTS, make_trainer, rows

SINGLE = "a pass has a single reply (per_device_train_batch_size 1)"
NOT_IN_ROLLOUTS: list[tuple[str, dict[str, Any], str]] = [
    ("pocket", {"cache_implementation": "static"}, "cache_implementation is static"),
    ("pocket", {"generation_kwargs": {"use_cache": False}}, "use_cache is false"),
    ("qwen2", {"use_transformers_continuous_batching": True}, "continuous batching generates the replies"),
]
NOT_TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"loss_type": "bnpo"}, "loss_type bnpo is normalized per pass"),
    ({"entropy_coef": 0.05}, "the entropy bonus is a mean per pass"),
    ({"top_entropy_quantile": 0.4}, "top_entropy_quantile 0.4 is taken per pass"),
]


@pytest.mark.parametrize(("family", "settings", "reason"), NOT_IN_ROLLOUTS)
def test_why_rollouts_are_not_shared(
    family: str, settings: dict[str, Any], reason: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    trainer = make_trainer(request.getfixturevalue(f"{family}_checkpoint"), tmp_path, **settings)
    said = trainer.describe_sharing()
    assert said.startswith("yes, ") and said.endswith(f"; not in rollouts, because {reason}")
    if not trainer.use_transformers_continuous_batching:  # which needs a GPU
        trainer._generate_and_score_completions(rows(PROMPTS[:1], seeing=True))
        assert trainer._reader.num_read == 0
    trainer.args.per_device_train_batch_size = 1
    assert trainer.describe_sharing() == f"nowhere, because {SINGLE} and {reason}"


@pytest.mark.parametrize(("settings", "reason"), NOT_TOGETHER)
def test_why_replies_of_a_group_are_not_brought_together(
    settings: dict[str, Any], reason: str, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(pocket_checkpoint, tmp_path, gradient_accumulation_steps=2, **settings)
    assert not trainer.brings_together
    assert trainer.describe_sharing().endswith(f"the passes of a step, because {reason}")
    whole = make_trainer(pocket_checkpoint, tmp_path, **settings)
    assert "because" not in whole.describe_sharing()  # a single pass has all replies


def test_passes_of_one_reply_share_in_rollouts_only(pocket_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pocket_checkpoint, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert trainer.describe_sharing() == f"in rollouts only, because {SINGLE}"
