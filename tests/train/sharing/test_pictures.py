"""Features of a fixed tower that are kept from an earlier pass: the same result, without reading the pictures."""

from pathlib import Path

import pytest
import torch

from tests.train.sharing.test_equivalence import PROMPTS, assert_same, make_trainer, replies, run
from train.freezing.freeze import FreezeArguments


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("family", ["pocket", "qwen2_vl", "qwen3_vl", "internvl"])
def test_kept_features_give_the_same_gradients_in_every_family(
    family: str, reentrant: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        request.getfixturevalue(f"{family}_checkpoint"), tmp_path,
        freeze=FreezeArguments(freeze=["vision", "projector"]), gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )  # fmt: skip
    batch = replies(trainer, PROMPTS)
    assert_same(trainer, batch)
    first = run(trainer, batch, shared=True)
    monkeypatch.setattr(trainer._reader, "forget", lambda: None)
    second = run(trainer, batch, shared=True)
    assert first.num_pictures > 0 and second.num_pictures == 0
    assert second.loss == first.loss and second.gradients.keys() == first.gradients.keys()
    for name, gradient in first.gradients.items():
        assert torch.equal(second.gradients[name], gradient), name
