"""The rule that stops repetitive replies."""

import numpy as np
import torch

from eval.replies.repetition import INTERVAL_TOKENS, NUM_ROUNDS, RepetitionStop, circles_at, is_circling


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


def test_a_finished_reply_is_cut_where_it_would_have_been_ended() -> None:
    rng = np.random.default_rng(0)
    for start in range(0, 40, 7):
        for period in (1, 3, 4):
            tokens = [*range(100, 100 + start), *([4, 5, 6, 7][:period] * 30)][: start + 40]
            stop = RepetitionStop(num_prompt_tokens=1, window=16)
            ended = next(
                (n for n in range(1, len(tokens) + 1) if stop(torch.tensor([[0, *tokens[:n]]]), None)[0]), None
            )
            assert circles_at(tokens, 16) == ended and ended is not None and ended % INTERVAL_TOKENS == 0
    assert circles_at(rng.permutation(200).tolist(), 16) is None
    assert circles_at([1] * 50, 0) is None
