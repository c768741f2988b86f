"""How are the replies to one prompt laid out in one sequence? The prompt once, then one branch per reply.

A branch is the prompt's last token followed by the reply. A token attends to the tokens of its own branch at or before
it, and to the prompt without its last token. So each branch sees exactly what it would see in a sequence of its own.
The last token is repeated because a language model reads the prediction for a reply's first token from it.

    prompt  a b c, replies  x y  and  z
    sequence  a b | c x y | c z         predicted  x y, z
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

ATTENTION_SCALE = 6
"""A decoder layer costs about 24 d² operations per token in its linear maps (width d, MLP of 4 d in all) and 4 d w in
attention over w tokens, so w is compared with 6 d."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One prompt and the rows of a batch that answer it."""

    rows: tuple[int, ...]
    prompt_columns: tuple[int, ...]
    """Columns of the prompt's tokens in the batch, without padding."""
    reply_columns: tuple[tuple[int, ...], ...]
    """Per row, the columns of the reply's tokens that are read; empty for a reply that is masked out."""

    @property
    def num_tokens(self) -> int:
        """Length of the group's sequence."""
        return len(self.prompt_columns) - 1 + sum(1 + len(columns) for columns in self._branches())

    def _branches(self) -> list[tuple[int, ...]]:
        return [columns for columns in self.reply_columns if columns] or [()]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each token of the packed sequences comes from, and what it attends to.

    Tokens of the batch are counted row by row. A packed row holds one or several groups.
    """

    groups: tuple[int, ...]
    """The groups in the order in which their prompts occur in the packed rows."""
    source: Int[Tensor, "rows width"]
    """Index of the token in the batch; that of a group's first token for padding."""
    offset: Int[Tensor, "rows width"]
    """Position of a reply's token behind the prompt, from 1; 0 in prompts and padding."""
    group: Int[Tensor, "rows width"]
    """Index of the token's group; -1 for padding."""
    branch: Int[Tensor, "rows width"]
    """Number of the token's branch within the row; prompts have numbers of their own; -1 for padding."""
    parent: Int[Tensor, "rows width"]
    """Number of the prompt that a branch continues."""
    scored: Int[Tensor, " tokens"]
    """Places of the reply tokens in the packed rows, counted row by row."""
    scored_source: Int[Tensor, " tokens"]
    """Their indices in the batch."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens the model reads, padding included."""
        return self.source.numel()

    def attention(self) -> Bool[Tensor, "rows 1 width width"]:
        """Returns which tokens (last axis) each token attends to."""
        width = self.source.shape[1]
        query, key = self.branch[:, :, None], self.branch[:, None, :]
        seen = (query == key) | (self.parent[:, :, None] == key)
        causal = torch.ones(width, width, dtype=torch.bool, device=self.source.device).tril()
        return (seen & causal)[:, None]


def lay_out(groups: Sequence[Group], num_columns: int, *, hidden_size: int, device: torch.device) -> Layout:
    """Packs groups into rows of about equal length; the number of rows is the one that costs least.

    Args:
        groups: the prompts of a batch with their replies.
        num_columns: width of the batch, prompt and reply.
        hidden_size: width of the model.
        device: where the result is placed.
    """
    rows = min(
        (_divide(groups, num_rows) for num_rows in range(1, len(groups) + 1)),
        key=lambda rows: _cost(groups, rows, hidden_size),
    )
    width = _width(groups, rows)
    fields: dict[str, list[list[int]]] = {name: [] for name in ("source", "offset", "group", "branch", "parent")}
    scored: list[int] = []
    scored_source: list[int] = []
    for index, row in enumerate(rows):
        tokens = _Row(padding=groups[row[0]].rows[0] * num_columns + groups[row[0]].prompt_columns[0])
        for number in row:
            tokens.append(number, groups[number], num_columns)
        scored += [index * width + place for place in tokens.scored]
        scored_source += [tokens.columns["source"][place] for place in tokens.scored]
        for name, values in tokens.padded(width).items():
            fields[name].append(values)
    tensors = {name: torch.tensor(values, device=device) for name, values in fields.items()}
    return Layout(
        groups=tuple(number for row in rows for number in row),
        scored=torch.tensor(scored, dtype=torch.long, device=device),
        scored_source=torch.tensor(scored_source, dtype=torch.long, device=device),
        **tensors,
    )


class _Row:
    """One packed row while it is filled."""

    def __init__(self, *, padding: int) -> None:
        self._padding = padding
        self._num_branches = 0
        self.columns: dict[str, list[int]] = {name: [] for name in ("source", "offset", "group", "branch", "parent")}
        self.scored: list[int] = []

    def append(self, number: int, group: Group, num_columns: int) -> None:
        prompt, *branches = range(self._num_branches, self._num_branches + 1 + max(1, len(group.rows)))
        self._num_branches = branches[-1] + 1
        first = group.rows[0] * num_columns
        *head, last = group.prompt_columns
        for column in head:
            self._add(first + column, 0, number, prompt, prompt)
        live = [(row, columns) for row, columns in zip(group.rows, group.reply_columns, strict=True) if columns]
        for branch, (row, columns) in zip(branches, live or [(group.rows[0], ())], strict=False):
            self._add(first + last, 0, number, branch, prompt)
            for offset, column in enumerate(columns, start=1):
                self.scored.append(len(self.columns["source"]))
                self._add(row * num_columns + column, offset, number, branch, prompt)

    def _add(self, source: int, offset: int, group: int, branch: int, parent: int) -> None:
        for name, value in zip(self.columns, (source, offset, group, branch, parent), strict=True):
            self.columns[name].append(value)

    def padded(self, width: int) -> dict[str, list[int]]:
        blank = {"source": self._padding, "offset": 0, "group": -1, "branch": -1, "parent": -1}
        return {name: values + [blank[name]] * (width - len(values)) for name, values in self.columns.items()}


def _divide(groups: Sequence[Group], num_rows: int) -> list[list[int]]:
    """Divides groups into rows, the longest first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    lengths = [0] * num_rows
    for number in sorted(range(len(groups)), key=lambda number: -groups[number].num_tokens):
        row = lengths.index(min(lengths))
        rows[row].append(number)
        lengths[row] += groups[number].num_tokens
    return rows


def _width(groups: Sequence[Group], rows: Sequence[Sequence[int]]) -> int:
    return max(sum(groups[number].num_tokens for number in row) for row in rows)


def _cost(groups: Sequence[Group], rows: Sequence[Sequence[int]], hidden_size: int) -> int:
    width = _width(groups, rows)
    return len(rows) * width * (ATTENTION_SCALE * hidden_size + width)
