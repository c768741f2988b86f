"""Pass rates of a real (untrained) pocket checkpoint: draws, bands, continuing, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest, chisquare

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval.boundary import BoundaryArguments, main, reply_seed, select_boundary
from eval.grading import grade

NUM_SAMPLES = 6


def write_prompt_set(directory: Path, answers: dict[str, str], *, kind: str = "text") -> Path:
    """Two prompts with pictures, four without; answers by id, `red` where none is given."""
    (directory / "images").mkdir(parents=True)
    for name, size in (("a", (84, 84)), ("b", (56, 84)), ("unused", (56, 56))):
        image = Image.new("RGB", size, (236, 236, 236))
        image.paste((214, 40, 40), (10, 10, 30, 40))
        image.save(directory / "images" / f"{name}.png")
    prompts = [
        Prompt(
            id=f"{ability[0]}{number}", ability=ability, question=f"What colour is {number} ?", answer_kind=kind,
            answer=answers.get(f"{ability[0]}{number}", "red"), images=images, meta={"row": number},
        )
        for ability, number, images in [
            ("vision", 0, ("images/a.png",)), ("vision", 1, ("images/b.png", "images/a.png")),
            ("reasoning", 2, ()), ("reasoning", 3, ()), ("reasoning", 4, ()), ("reasoning", 5, ()),
        ]
    ]  # fmt: skip
    write_prompts(directory, "rl", prompts)
    return directory


def arguments(model: Path, data: Path, output_dir: Path, **changes: Any) -> BoundaryArguments:
    values: dict[str, Any] = {
        "num_samples": NUM_SAMPLES, "max_new_tokens": 2, "batch_size": 8, "dtype": "float32", "temperature": 0.5,
        "band": [0.0, 1.0], **changes,
    }  # fmt: skip
    return BoundaryArguments(model=str(model), data=str(data), output_dir=str(output_dir), **values)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().split("\n")[:-1]]


def words(text: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.casefold()).split())


@pytest.fixture(scope="session")
def drawn(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the model replies to each prompt, in the order of the samples."""
    folder = tmp_path_factory.mktemp("drawn")
    directory = select_boundary(
        arguments(pocket_checkpoint, write_prompt_set(folder / "data", {}), folder / "out", band=[0.0, 1.0])
    )
    replies = {row["key"]: row["response"] for row in records(directory)}
    names = dict.fromkeys(key.rpartition("/")[0] for key in replies)
    return {name: [replies[f"{name}/{number}"] for number in range(NUM_SAMPLES)] for name in names}


@pytest.fixture(scope="session")
def answers(drawn: dict[str, list[str]]) -> dict[str, str]:
    """Gold answers that some replies give: a reply to each of three prompts, none to the others."""
    golds = {}
    for name in ("v0", "v1", "r2"):
        golds[name] = next(reply for reply in drawn[name] if grade(reply, reply, "text").correct and words(reply))
    return golds


def rate(replies: list[str], gold: str) -> float:
    return sum(words(reply) == words(gold) for reply in replies) / len(replies)


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    import torch

    from eval.replies.generation import SeededSampler

    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -float("inf")])
    num_rows = 6000
    sampler = SeededSampler(range(num_rows), temperature=0.7, device=torch.device("cpu"))
    scores = logits.repeat(num_rows, 1)
    expected = np.exp(logits[:5].double().numpy() / 0.7)
    for _ in range(2):  # the first and the second token
        counts = torch.bincount(sampler(torch.empty(0), scores).argmax(-1), minlength=6).numpy()
        assert counts[5] == 0
        assert chisquare(counts[:5], expected / expected.sum() * num_rows).pvalue > 1e-3


def test_a_draw_depends_on_its_own_seed_and_not_on_its_neighbours() -> None:
    import torch

    from eval.replies.generation import SeededSampler

    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    seeds = [reply_seed(0, "p", number) for number in range(4)]
    assert len(set(seeds)) == 4 and reply_seed(0, "p", 1) != reply_seed(1, "p", 1) != reply_seed(1, "q", 1)
    device = torch.device("cpu")
    together = SeededSampler(seeds, temperature=1.0, device=device)(torch.empty(0), scores)
    for row in range(4):
        alone = SeededSampler(seeds[row : row + 1], temperature=1.0, device=device)(
            torch.empty(0), scores[row : row + 1]
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.slow
def test_replies_are_the_same_in_other_batches_and_differ_between_samples(
    pocket_checkpoint: Path, tmp_path: Path, drawn: dict[str, list[str]]
) -> None:
    data = write_prompt_set(tmp_path / "data", {})
    single = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "out", batch_size=1))
    assert {row["key"]: row["response"] for row in records(single)} == {
        f"{name}/{number}": reply for name, replies in drawn.items() for number, reply in enumerate(replies)
    }
    assert all(len(set(replies)) > 1 for replies in drawn.values())
    other = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "other", seed=1))
    assert {row["key"]: row["response"] for row in records(other)} != {
        row["key"]: row["response"] for row in records(single)
    }


def test_prompts_whose_rate_lies_in_the_band_make_a_new_prompt_set(
    pocket_checkpoint: Path, tmp_path: Path, drawn: dict[str, list[str]], answers: dict[str, str]
) -> None:
    data = write_prompt_set(tmp_path / "data", answers)
    directory = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "out", band=[]))
    rates = pd.read_csv(directory / "rates.csv").set_index("id")
    prompts = {prompt.id: prompt for prompt in read_prompts(data, "rl")}
    assert list(rates.index) == list(prompts)
    for name, prompt in prompts.items():
        expected = rate(drawn[name], prompt.answer)
        interval = binomtest(round(expected * NUM_SAMPLES), NUM_SAMPLES).proportion_ci(method="wilson")
        assert rates.loc[name, ["pass_rate", "low", "high"]].tolist() == pytest.approx([expected, *interval], abs=1e-5)
        assert (rates.loc[name, "n"], rates.loc[name, "num_unscored"]) == (NUM_SAMPLES, 0)
        assert rates.loc[name, "kept"] == (0 < expected < 1)
    kept = read_prompts(directory / "data", "rl")
    assert kept == [prompt for name, prompt in prompts.items() if rates.loc[name, "kept"]]
    assert 0 < len(kept) < len(prompts)
    images = {image for prompt in kept for image in prompt.images}
    stored = directory / "data" / "images"
    assert {f"images/{path.name}" for path in stored.iterdir()} == images
    assert all((directory / "data" / image).read_bytes() == (data / image).read_bytes() for image in images)
    manifest = json.loads((directory / "data" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"rl.jsonl", *images}
    assert str(tmp_path) not in json.dumps(manifest)
    summary = pd.read_csv(directory / "summary.csv").set_index("ability")
    assert summary.loc["all", "n"] == len(prompts)
    assert summary.loc["all", "num_kept"] == len(kept) == summary.loc["all", "num_sometimes"]
    assert summary.loc["all", "num_never"] == (rates["pass_rate"] == 0).sum()
    assert summary.loc["reasoning", "n"] + summary.loc["vision", "n"] == len(prompts)


def test_a_band_holds_its_lower_end_and_not_its_upper_one(
    pocket_checkpoint: Path, tmp_path: Path, drawn: dict[str, list[str]], answers: dict[str, str]
) -> None:
    data = write_prompt_set(tmp_path / "data", answers)
    edge = rate(drawn["v0"], answers["v0"])
    first = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "first", band=[edge, 1.0]))
    assert "v0" in [prompt.id for prompt in read_prompts(first / "data", "rl")]
    below = arguments(pocket_checkpoint, data, tmp_path / "below", band=[0.0, edge], replies=str(first))
    assert "v0" not in [prompt.id for prompt in read_prompts(select_boundary(below) / "data", "rl")]
    assert (tmp_path / "below" / "records.jsonl").read_bytes() == (first / "records.jsonl").read_bytes()


def test_replies_of_an_earlier_run_are_taken_over_and_the_missing_ones_drawn(
    pocket_checkpoint: Path, tmp_path: Path, drawn: dict[str, list[str]]
) -> None:
    data = write_prompt_set(tmp_path / "data", {})
    few = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "few", num_samples=2))
    lines = (few / "records.jsonl").read_text().replace('"rule": "', '"rule": "taken over: ')
    (few / "records.jsonl").write_text(lines)
    more = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "more", replies=str(few)))
    rows = {row["key"]: row for row in records(more)}
    assert {key: row["response"] for key, row in rows.items()} == {
        f"{name}/{number}": reply for name, replies in drawn.items() for number, reply in enumerate(replies)
    }
    assert {key for key, row in rows.items() if row["rule"].startswith("taken over")} == {
        f"{name}/{number}" for name in drawn for number in (0, 1)
    }
    with pytest.raises(ValueError, match=r"was made with temperature = 0\.5, now it is 0\.7"):
        select_boundary(arguments(pocket_checkpoint, data, tmp_path / "no", temperature=0.7, replies=str(few)))
    assert not (tmp_path / "no").exists()


def test_kept_prompts_are_balanced_from_the_replies_of_an_earlier_run(
    pocket_checkpoint: Path, tmp_path: Path, drawn: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_prompt_set(tmp_path / "data", {})
    prompts = [
        dataclasses.replace(prompt, meta={"modality": "negative" if number < 4 else "speckle"})
        for number, prompt in enumerate(read_prompts(data, "rl"))
    ]
    write_prompts(data, "rl", prompts)
    whole = select_boundary(arguments(pocket_checkpoint, data, tmp_path / "whole"))
    balanced = arguments(
        pocket_checkpoint, data, tmp_path / "balanced", replies=str(whole), balance="modality", curriculum=True
    )
    directory = select_boundary(balanced)
    assert (directory / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    cells = pd.read_csv(directory / "balance.csv").set_index("modality")
    number = cells["num_in_band"].min()
    assert 0 < number < cells["num_in_band"].max() and (cells["num_kept"] == number).all()
    assert (cells["n"] - cells["num_dropped_by_band"] - cells["num_dropped_by_balancing"] == number).all()
    rates = pd.read_csv(directory / "rates.csv").set_index("id")
    kept = [prompt.id for prompt in read_prompts(directory / "data", "rl")]
    assert set(kept) == set(rates.index[rates["kept"]]) < set(rates.index[rates["in_band"]])
    assert rates.loc[kept, "pass_rate"].is_monotonic_decreasing
    assert pd.read_csv(directory / "summary.csv")["num_kept"].iloc[-1] == len(kept)
    assert "balanced by modality: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="no field 'modalty'"):
        select_boundary(dataclasses.replace(balanced, output_dir=str(tmp_path / "no"), balance="modalty"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("num_kept", [0, 5, 16, 36])
@pytest.mark.cases_slow
def test_a_killed_run_continues_to_the_same_product(
    pocket_checkpoint: Path, tmp_path: Path, answers: dict[str, str], num_kept: int
) -> None:
    data = write_prompt_set(tmp_path / "data", answers)
    asked = arguments(pocket_checkpoint, data, tmp_path / "out")
    directory = select_boundary(asked)

    def product() -> dict[str, bytes]:
        files = [path for path in directory.rglob("*") if path.is_file() and path.name not in ("run.json", ".lock")]
        return {str(path.relative_to(directory)): path.read_bytes() for path in files}

    whole = product()
    lines = whole["records.jsonl"].splitlines(keepends=True)
    assert len(lines) == 6 * NUM_SAMPLES
    torn = lines[num_kept][:30] if num_kept < len(lines) else b""
    (directory / "records.jsonl").write_bytes(b"".join(lines[:num_kept]) + torn)
    for name in ("rates.csv", "summary.csv"):
        (directory / name).unlink()
    shutil.rmtree(directory / "data")
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**state, "status": "running"}))
    select_boundary(asked)
    assert product() == whole
    before = {path: path.stat().st_mtime_ns for path in (directory / "data").rglob("*")}
    select_boundary(asked)
    assert {path: path.stat().st_mtime_ns for path in (directory / "data").rglob("*")} == before


def test_replies_that_cannot_be_judged_are_neither_right_nor_wrong(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """As numbers, no reply can be compared with `red`, and replies without a number are wrong all the same."""
    data = write_prompt_set(tmp_path / "data", {"r2": "5", "r3": "6"}, kind="number")
    rows = [
        {"key": f"{name}/{number}", "id": name, "response": reply, "num_tokens": 1, "finish_reason": "stop",
         "extracted": None, "status": status, "rule": "by hand"}
        for name in ("v0", "v1", "r2", "r3", "r4", "r5")
        for number, (reply, status) in enumerate(
            {"r2": [("5", "correct"), ("6", "incorrect"), ("?", "unscored")], "r3": [("6", "correct")] * 3}.get(
                name, [("7", "unscored")] * 3
            )
        )
    ]  # fmt: skip
    settings = arguments(pocket_checkpoint, data, tmp_path / "by_hand", num_samples=3, max_new_tokens=1)
    with pytest.raises(RuntimeError, match=r"no prompt has 0\.9 <= pass rate < 1; see .*rates\.csv"):
        select_boundary(dataclasses.replace(settings, band=[0.9, 1.0]))
    (tmp_path / "by_hand" / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = dataclasses.replace(settings, output_dir=str(tmp_path / "out"), band=[], replies=str(tmp_path / "by_hand"))
    directory = select_boundary(judged)
    rates = pd.read_csv(directory / "rates.csv").set_index("id")
    assert rates["num_unscored"].to_dict() == {"v0": 3, "v1": 3, "r2": 1, "r3": 0, "r4": 3, "r5": 3}
    assert rates["n"].to_dict() == {"v0": 0, "v1": 0, "r2": 2, "r3": 3, "r4": 0, "r5": 0}
    assert (rates.loc["r2", "pass_rate"], rates.loc["r3", "pass_rate"]) == (0.5, 1.0)
    assert rates.loc[["v0", "v1", "r4", "r5"], "pass_rate"].isna().all()
    assert [prompt.id for prompt in read_prompts(directory / "data", "rl")] == ["r2"]
    summary = pd.read_csv(directory / "summary.csv").set_index("ability").loc["all"]
    assert (summary["num_without_judgement"], summary["num_unscored_replies"], summary["num_replies"]) == (4, 13, 18)
    assert (summary["num_never"], summary["num_sometimes"], summary["num_always"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--num_samples": "0"}, "num_samples is 0"),
        ({"--temperature": "0"}, r"temperature is 0\.0; it must be above 0"),
        ({"--band": "0.5"}, r"band \[0\.5\]: expected two rates"),
        ({"--band": "10 90"}, r"expected two rates LOW HIGH with 0 <= LOW < HIGH <= 1"),
        ({"--band": "0.9 0.1"}, "expected two rates"),
        ({"--balance": "modality,"}, "balance is 'modality,'; expected fields"),
        ({"--per_cell": "3"}, "per_cell is given without balance"),
        ({"--prompt_style": "thnk"}, "did you mean 'think'"),
        ({"--split": "lr"}, r"lr\.jsonl does not exist; .* has the splits rl"),
        ({"--model": "no/such/folder"}, "checkpoint no/such/folder does not exist"),
        ({"--replies": "no_such_run"}, "no_such_run has no run.json"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    pocket_checkpoint: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    given = {
        "--model": pocket_checkpoint,
        "--data": write_prompt_set(tmp_path / "data", {}),
        "--output_dir": tmp_path / "out",
    }
    flags = {**given, **changes}
    with pytest.raises(ValueError, match=message):
        main([word for flag, value in flags.items() for word in (flag, *str(value).split(" "))])
    assert not (tmp_path / "out").exists()


def test_a_text_only_model_is_tried_on_prompts_without_pictures(qwen2_checkpoint: Path, tmp_path: Path) -> None:
    data = write_prompt_set(tmp_path / "data", {})
    with pytest.raises(ValueError, match="prompt 'v0' has images, and the model is text-only"):
        select_boundary(arguments(qwen2_checkpoint, data, tmp_path / "refused"))
    write_prompts(data, "rl", [prompt for prompt in read_prompts(data, "rl") if not prompt.images])
    directory = select_boundary(arguments(qwen2_checkpoint, data, tmp_path / "out", system_prompt="Be brief ."))
    assert len(records(directory)) == 4 * NUM_SAMPLES
    assert len({row["response"] for row in records(directory)}) > 1


def test_images_outside_the_prompt_set_are_refused(pocket_checkpoint: Path, tmp_path: Path) -> None:
    data = write_prompt_set(tmp_path / "data", {})
    shutil.copy(data / "images" / "a.png", tmp_path / "a.png")
    (first, *others) = read_prompts(data, "rl")
    write_prompts(data, "rl", [dataclasses.replace(first, images=("../a.png",)), *others])
    with pytest.raises(ValueError, match=r"prompt 'v0': image '\.\./a\.png' lies outside the prompt set"):
        select_boundary(arguments(pocket_checkpoint, data, tmp_path / "out"))
