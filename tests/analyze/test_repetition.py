"""The rule that ends replies which go round in circles, and that it touches no other reply."""

from pathlib import Path

import numpy as np
import torch

from analyze.repetition import NUM_ROUNDS, RepetitionStop, is_circling
from analyze.skip_generation import Rows, answer_rows
from analyze.skip_tables import REPETITION
from analyze.skipping import RowwiseSkip
from eval.generation import greedy_settings
from models.loading import load_model, load_processor


def test_circling_is_found_as_by_cutting_the_tokens_into_rounds() -> None:
    rng = np.random.default_rng(0)
    window = 16
    rows = [rng.integers(0, 3, window) for _ in range(200)]
    rows += [np.tile(rng.integers(0, 50, period), window)[-window:] for period in range(1, window) for _ in range(10)]
    expected = [
        any(
            all(len(set(row[place::period])) == 1 for place in range(period))
            for period in range(1, window // NUM_ROUNDS + 1)
        )
        for row in rows
    ]
    assert is_circling(torch.tensor(np.stack(rows))).tolist() == expected
    assert 0 < sum(expected) < len(rows)


def test_a_reply_ends_where_its_last_tokens_have_become_rounds_of_one_cycle() -> None:
    stop = RepetitionStop(num_prompt_tokens=3, window=16)
    endless = torch.tensor([[1, 2, 3], [7, 7, 7]])
    for length in range(1, 60):
        token = 9 + length if length < 20 else [4, 5, 6][length % 3]  # a cycle from the 20th token on
        endless = torch.cat([endless, torch.tensor([[token], [100 + length]])], dim=1)
        ended = stop(endless, None)
        assert not ended[1]
        assert bool(ended[0]) == (length >= 40)  # 19 + 16 tokens, and the next time it is looked at
    assert stop.stopped_at is not None and stop.stopped_at.tolist() == [40, 0]


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
