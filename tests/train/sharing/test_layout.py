"""How replies are laid out behind a prompt, and which replies go through the same pass."""

import torch

from train.sharing.batch import Batch
from train.sharing.layout import lay_out
from train.sharing.order import reordered, together

#              pad  a   b   c | x   y   z
IDS = torch.tensor([[0, 11, 12, 13, 21, 22, 0], [0, 11, 12, 13, 31, 0, 0], [14, 15, 16, 17, 41, 42, 43],
                    [0, 11, 12, 13, 51, 0, 0]])  # fmt: skip
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0], [1] * 7, [0, 1, 1, 1, 0, 0, 0]])


def sees(batch: Batch) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """For each scored token of a packed batch, the tokens that the place that predicts it attends to."""
    groups = batch.groups()
    layout = lay_out(groups, batch.ids.shape[1], hidden_size=64, device=batch.ids.device)
    attention, ids = layout.attention()[:, 0], batch.ids.reshape(-1)[layout.source]
    width = layout.source.shape[1]
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for place, source in zip(layout.scored.tolist(), layout.scored_source.tolist(), strict=True):
        row, column = divmod(place, width)
        assert ids[row, column] == batch.ids.reshape(-1)[source]
        seen = ids[row, :width][attention[row, column - 1]]
        found.setdefault((source // batch.ids.shape[1],), set()).add((int(ids[row, column]), *seen.tolist()))
    return found


def test_each_token_is_predicted_from_its_own_prompt_and_reply_only() -> None:
    assert sees(Batch(ids=IDS, mask=MASK, num_reply_columns=3)) == {
        (0,): {(21, 11, 12, 13), (22, 11, 12, 13, 21)},
        (1,): {(31, 11, 12, 13)},
        (2,): {(41, 14, 15, 16, 17), (42, 14, 15, 16, 17, 41), (43, 14, 15, 16, 17, 41, 42)},
    }  # fmt: skip


def test_every_place_attends_to_something_padding_included() -> None:
    groups = Batch(ids=IDS, mask=MASK, num_reply_columns=3).groups()
    layout = lay_out(groups, 7, hidden_size=100_000, device=IDS.device)  # so wide a model pays for padding first
    assert layout.attention().any(dim=-1).all()
    assert [group.rows for group in groups] == [(0, 1, 3), (2,)]


def test_long_and_short_groups_share_rows_where_that_is_cheaper() -> None:
    def width(lengths: list[int]) -> tuple[int, ...]:
        ids = torch.zeros(len(lengths), 101, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            ids[row, 100 - length : 100] = row + 1
            mask[row, 100 - length :] = 1
        groups = Batch(ids=ids, mask=mask, num_reply_columns=1).groups()
        return tuple(lay_out(groups, 101, hidden_size=4096, device=ids.device).source.shape)

    assert width([99, 50, 49]) == (1, 201)
    assert width([99, 99, 99]) == (3, 100)


def test_groups_are_brought_together_within_a_step_only() -> None:
    groups = [0, 1, 0, 1, 1, 0, 1, 0]
    assert together(groups, 4) == [0, 2, 1, 3, 4, 6, 5, 7]
    assert together(groups, 8) == [0, 2, 5, 7, 1, 3, 4, 6]
    batch = {"ids": torch.arange(8), "names": list("abcdefgh"), "count": torch.tensor(3), "absent": None}
    moved = reordered(batch, together(groups, 4))
    assert moved["ids"].tolist() == [0, 2, 1, 3, 4, 6, 5, 7] and "".join(moved["names"]) == "acbdegfh"
    assert moved["count"] == 3 and moved["absent"] is None
