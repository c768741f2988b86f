"""Balanced choices of prompts: equal cells, independent of the order, nothing dropped without a word."""

import random

import pytest

from data_builders.prompt_sets.balance import NO_VALUE, balance_prompts, cell_lines
from data_builders.prompt_sets.prompts import Prompt


def prompt(name: str, modality: str | None, answer: str) -> Prompt:
    meta = None if modality is None else {"modality": modality}
    return Prompt(id=name, ability="vision", question="?", answer=answer, answer_kind="text", meta=meta)


SIZES = {("negative", "cat"): 9, ("negative", "dog"): 4, ("speckle", "cat"): 3, ("speckle", "dog"): 6}
PROMPTS = [
    prompt(f"{modality}-{label}-{number}", modality, label)
    for (modality, label), size in SIZES.items()
    for number in range(size)
]
FIELDS = ["modality", "class"]


def choose(
    prompts: list[Prompt], eligible: set[str], per_cell: int | None = None, seed: int = 0
) -> tuple[set[str], dict[tuple[str, ...], tuple[int, int, int]]]:
    chosen, cells = balance_prompts(prompts, eligible, FIELDS, per_cell=per_cell, seed=seed, where="data: split rl")
    return chosen, {cell.values: (cell.num_prompts, cell.num_eligible, cell.num_kept) for cell in cells}


def test_every_cell_keeps_as_many_as_the_rarest_has_and_an_empty_one_is_listed() -> None:
    everything = {each.id for each in PROMPTS}
    chosen, cells = choose(PROMPTS, everything)
    assert cells == {cell: (size, size, 3) for cell, size in SIZES.items()} and len(chosen) == 12
    without = {name for name in everything if not name.startswith("speckle-dog")} - {"negative-dog-0", "negative-dog-1"}
    chosen, cells = choose(PROMPTS, without)
    assert cells[("speckle", "dog")] == (6, 0, 0) and cells[("negative", "cat")] == (9, 9, 2)
    assert chosen <= without and "negative-dog-2" in chosen


def test_the_choice_is_the_seeds_and_not_the_orders() -> None:
    everything = {each.id for each in PROMPTS}
    shuffled = random.Random(1).sample(PROMPTS, len(PROMPTS))
    assert choose(PROMPTS, everything)[0] == choose(shuffled, everything)[0]
    assert len({frozenset(choose(PROMPTS, everything, seed=seed)[0]) for seed in range(5)}) > 1


def test_the_closing_lines_say_what_balancing_costs_and_which_cells_are_empty() -> None:
    eligible = {each.id for each in PROMPTS if not each.id.startswith("speckle-dog")}
    _, cells = balance_prompts(PROMPTS, eligible, FIELDS, per_cell=4, seed=0, where="")
    *_, costs, empty, short = cell_lines(cells, FIELDS, per_cell=4)
    assert "11 of 22 prompts kept; the band drops 6, balancing 5 of the 16 in the band" in costs
    assert empty.endswith("without a prompt in the band: speckle, dog")
    assert short.endswith("with fewer than 4 prompts in the band: speckle, cat")


def test_a_given_number_takes_all_of_a_smaller_cell() -> None:
    _, cells = choose(PROMPTS, {each.id for each in PROMPTS}, per_cell=5)
    assert [kept for _, _, kept in cells.values()] == [5, 4, 3, 5]


def test_prompts_without_a_field_are_a_cell_and_an_unknown_field_is_refused() -> None:
    more = [*PROMPTS, prompt("plain", None, "cat")]
    assert choose(more, {each.id for each in more})[1][(NO_VALUE, "cat")] == (1, 1, 1)
    with pytest.raises(ValueError, match=r"data: split rl has no field 'modalty'.*'modality'"):
        balance_prompts(PROMPTS, set(), ["modalty"], per_cell=None, seed=0, where="data: split rl")
