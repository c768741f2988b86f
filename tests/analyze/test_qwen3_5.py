"""The probes as commands on Qwen3.5, of whose four decoder layers one has attention weights, the others a state."""

import random
from pathlib import Path

import pandas as pd
import pytest

from analyze.attention.command import AttentionArguments, measure_attention
from analyze.swap.command import main as swap
from data_builders.pairs.files import write_pairs
from data_builders.pairs.pair import Pair
from data_builders.pocket.draw import draw_scene, render
from data_builders.prompt_sets.prompts import Prompt, write_prompts

FULL_ATTENTION = 2
QUESTIONS = ("How many red objects are there ?", "What colour is the object in the centre ?", "How many are there ?")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    for number in range(2 * len(QUESTIONS)):
        render(draw_scene(rng)).save(directory / f"{number}.png")
    return directory


@pytest.mark.slow
def test_every_control_of_the_swap_holds_for_questions_of_several_lengths(
    qwen3_5_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    pairs = [
        Pair(
            id=f"pair-{number}", task="counting", prompt=question, target_image=f"{2 * number}.png",
            source_image=f"{2 * number + 1}.png", target_answer="1", source_answer="2",
        )
        for number, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    write_pairs(pictures, pairs)
    words = ["--model", str(qwen3_5_checkpoint), "--pairs", str(pictures), "--output-dir", str(tmp_path / "run")]
    swap([*words, "--max_new_tokens", "5", "--mode", "from", "only"])
    controls = pd.read_csv(tmp_path / "run" / "controls.csv")
    assert controls["n"].sum() == 18 and controls["num_differs"].sum() == 0
    assert controls["num_equal"].sum() >= 16
    logprobs = pd.read_csv(tmp_path / "run" / "logprobs.csv")
    assert (logprobs[(logprobs["layer"] == 0) & (logprobs["mode"] == "from")]["shift"] != 0).all()


@pytest.mark.slow
def test_attention_is_tabled_for_the_layers_that_have_it(
    qwen3_5_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    prompts = [
        Prompt(
            id=f"p{number}", ability="vision", question=question, answer="2", answer_kind="number",
            images=(f"{number}.png",), response="<think>red</think><answer>2</answer>",
        )
        for number, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    write_prompts(pictures, "test", prompts)
    models = [f"{name}={qwen3_5_checkpoint}" for name in ("base", "again")]
    arguments = AttentionArguments(
        models=models, tasks=[f"{pictures}:test"], output_dir=str(tmp_path / "run"), modes=["teacher-forced"],
        reference="response", top_tokens=2,
    )  # fmt: skip
    output_dir = measure_attention(arguments)
    assert pd.read_csv(output_dir / "controls.csv")["passed"].all()
    tables = {name: pd.read_csv(output_dir / f"{name}.csv") for name in ("attention", "shift", "blocks")}
    assert set(tables["attention"]["layer"]) == set(tables["shift"]["layer"]) == {FULL_ATTENTION}
    assert set(tables["shift"]["block"]) == {"late"} and set(tables["blocks"]["block"]) == {"late", "all"}
    assert not tables["shift"][["difference", "low", "high"]].any(axis=None)
