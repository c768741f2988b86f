"""What the trainer sees, and in which order."""

import dataclasses
from pathlib import Path

import pytest

from data_builders.prompts import Prompt, read_prompts
from train.data import DataArguments, build_dataset, load_prompts, training_order


def test_every_prompt_comes_once_a_pass_in_another_order_each_pass() -> None:
    order = training_order(10, 30, seed=0)
    passes = [order[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(each) for each in passes] == [list(range(10))] * 3
    assert passes[0] != passes[1] != passes[2]


def test_the_order_is_the_seeds_and_a_longer_run_begins_like_a_shorter_one() -> None:
    assert training_order(10, 25, seed=3) == training_order(10, 25, seed=3)
    assert training_order(10, 25, seed=3) != training_order(10, 25, seed=4)
    assert training_order(10, 25, seed=3)[:17] == training_order(10, 17, seed=3)
    assert len(training_order(10, 17, seed=3)) == 17


def test_only_prompts_of_the_wanted_abilities_are_loaded(tiny_prompts: Path) -> None:
    wanted = load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["reasoning"]))
    assert [prompt.id for prompt in wanted] == [f"t{index}" for index in range(5)]
    assert len(load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl"))) == 11


def test_an_ability_that_no_prompt_has_is_refused(tiny_prompts: Path) -> None:
    with pytest.raises(ValueError, match="no prompt of the ability 'visoin'; it has reasoning, vision"):
        load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["vision", "visoin"]))


def test_rows_stand_in_the_given_order_with_pictures_and_gold(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="rl", prompt_style="think", system_prompt="Be brief .")
    prompts = load_prompts(data)
    dataset = build_dataset(prompts, [7, 2, 2], data, with_response=False)
    assert [row["answer"] for row in dataset] == [prompts[index].answer for index in (7, 2, 2)]
    assert [[image.size for image in row["images"]] for row in dataset] == [[], [(56, 56)], [(56, 56)]]
    assert [message["role"] for message in dataset[0]["prompt"]] == ["system", "user"]
    assert dataset[0]["prompt"][1]["content"].startswith(prompts[7].question)
    assert "completion" not in dataset.column_names


def test_the_teachers_reply_is_the_completion(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    prompts = load_prompts(data)
    dataset = build_dataset(prompts, range(len(prompts)), data, with_response=True)
    assert [row["completion"] for row in dataset] == [[{"role": "assistant", "content": p.response}] for p in prompts]
    assert "answer" not in dataset.column_names


def test_a_prompt_without_response_cannot_be_trained_on(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    prompts: list[Prompt] = read_prompts(tiny_prompts, "sft")
    prompts[4] = dataclasses.replace(prompts[4], response=None)
    with pytest.raises(ValueError, match="prompt 'i4' has no response"):
        build_dataset(prompts, range(len(prompts)), data, with_response=True)


def test_prompts_without_any_picture_make_a_dataset_too(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["reasoning"])
    dataset = build_dataset(load_prompts(data), [0, 3], data, with_response=False)
    assert [row["images"] for row in dataset] == [[], []]
