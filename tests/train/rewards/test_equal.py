"""Groups whose rewards are equal: found beside rounding, and no other."""

import pytest
import torch

from train.rewards.equal import equal_groups

NAN = float("nan")
WEIGHTS = torch.tensor([0.9, 0.1])


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 0.9, 1e6])
def test_equal_rewards_are_found_whatever_their_value(value: float) -> None:
    assert equal_groups(torch.full((16, 2), value), WEIGHTS, 8).all()


def test_equal_sums_of_different_rewards_differ_by_rounding_only() -> None:
    rewards = torch.tensor([[0.1, 0.3], [0.12, 0.12]])  # 0.09 + 0.03 and 0.108 + 0.012
    assert equal_groups(rewards, WEIGHTS, 2).tolist() == [True, True]
    assert equal_groups(rewards, WEIGHTS, 2, per_function=True).tolist() == [False, False]


def test_a_small_difference_counts() -> None:
    rewards = torch.full((8, 2), 0.9)
    rewards[5, 1] += 1e-4
    assert equal_groups(rewards, WEIGHTS, 4).tolist() == [True] * 4 + [False] * 4


def test_unscored_replies_and_functions_do_not_count() -> None:
    rewards = torch.tensor(
        [[0.5, NAN], [NAN, NAN], [NAN, NAN], [0.5, NAN], [NAN, NAN], [NAN, NAN], [1.0, 0.0], [1.0, 1.0]]
    )
    assert equal_groups(rewards, WEIGHTS, 2).tolist() == [True] * 6 + [False] * 2
