from train.running.order import one_kind_a_batch

KINDS = [True, True, False, True, False, False, True, True]


def test_every_batch_is_of_one_kind_and_keeps_the_order_within_it() -> None:
    order = [0, 2, 1, 4, 3, 5, 6, 7, 2, 4]
    assert one_kind_a_batch(order, KINDS, 2) == [0, 1, 2, 4, 3, 6, 5, 2]


def test_at_most_an_incomplete_batch_of_each_kind_is_left_out() -> None:
    order = list(range(8)) * 5
    for size in (1, 2, 3, 7):
        batched = one_kind_a_batch(order, KINDS, size)
        assert len(order) - len(batched) <= 2 * (size - 1)
        assert len(batched) % size == 0
        for first in range(0, len(batched), size):
            assert len({KINDS[index] for index in batched[first : first + size]}) == 1
