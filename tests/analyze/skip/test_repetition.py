"""The rule that stops repetitive replies does not affect other replies of a batch with parts left out."""

from pathlib import Path

import pytest
import torch

from analyze.skip.generation import Rows, answer_rows
from analyze.skip.layers import RowwiseSkip
from eval.replies.decoding import REPETITION
from eval.replies.generation import greedy_settings
from models.loading import load_model, load_processor


@pytest.mark.slow
def test_only_circling_replies_are_ended_and_their_beginnings_are_kept(pocket_checkpoint: Path) -> None:
    model = load_model(pocket_checkpoint, dtype="float32").eval()
    processor = load_processor(pocket_checkpoint)
    texts = [f"What is {number} + 3 ?" for number in range(10)]
    plan = torch.zeros(10, 6, 2, dtype=torch.bool)
    plan[:, 1:5] = True
    rows = Rows(texts=texts, images=[[]] * 10, prompts=list(range(10)), plan=plan)
    ends = [processor.tokenizer.convert_tokens_to_ids("0")]
    settings = {**greedy_settings(model, processor, 48), "eos_token_id": ends}
    with RowwiseSkip(model) as skip:
        free, ended = (answer_rows(model, processor, skip, rows, settings, repetition_window=w) for w in (0, 16))
    assert {answer.finish_reason for answer in ended} >= {REPETITION}
    for whole, kept in zip(free, ended, strict=True):
        if kept.finish_reason == REPETITION:
            assert kept.num_tokens % 8 == 0 and 16 <= kept.num_tokens < 48
            assert whole.response.startswith(kept.response.rstrip("\ufffd"))
        else:
            assert kept == whole
