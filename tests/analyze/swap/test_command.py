"""The swap as a command: controls, tables, left-out pairs, killed and continued runs."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyze.swap.command import main
from analyze.swap.controls import check_controls, compare
from analyze.swap.pairs import PairOptions, ReadyPair, open_pair
from analyze.swap.plan import swapped_layers
from analyze.swap.prefix import Reply
from analyze.swap.run import swap_pairs
from data_builders.pairs.files import read_pairs, write_pairs
from data_builders.pairs.pair import Pair
from data_builders.pocket.draw import draw_scene, render
from eval.replies.generation import greedy_settings
from models.loading import load_model, load_processor
from models.pocket import PocketShape, write_pocket_checkpoint
from tracking.command import run_command
from tracking.records import read_records

NUM_LAYERS = 6
PUBLISHED = Path(__file__).parents[3] / "../shared/data/published_pairs"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="../shared/data/published_pairs is not here")


@pytest.fixture(scope="session")
def pair_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs that can be swapped, one whose source is a file of nonsense, and one whose source is larger."""
    directory = tmp_path_factory.mktemp("mixed")
    rng = random.Random(0)
    pairs = []
    for number in range(7):
        names = [f"{number}-{side}.png" for side in ("target", "source")]
        for name in names:
            render(draw_scene(rng)).save(directory / name)
        task, question, answers = [
            ("counting", "How many red objects are there ?", ("1", "2")),
            ("ocr", "What colour is the object in the centre ?", ("red", "blue")),
        ][number % 2]
        pairs.append(
            Pair(
                id=f"pair-{number}", task=task, prompt=question, target_image=names[0], source_image=names[1],
                target_answer=answers[0], source_answer=answers[1],
            )
        )  # fmt: skip
    (directory / "2-source.png").write_bytes(b"no picture")
    render(draw_scene(rng)).resize((112, 112)).save(directory / "5-source.png")
    write_pairs(directory, pairs)
    return directory


def swap(checkpoint: Path, pairs: Path, output_dir: Path, *more: str) -> None:
    main(
        ["--model", str(checkpoint), "--pairs", str(pairs), "--output-dir", str(output_dir), "--max_new_tokens", "6",
         "--batch_size", "2", "--window", "2", *more]
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(pocket_checkpoint: Path, pair_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("swap") / "run"
    swap(pocket_checkpoint, pair_set, output_dir, "--mode", "from", "only", "window")
    return output_dir


def test_controls_hold_and_stand_in_the_output(finished: Path) -> None:
    controls = pd.read_csv(finished / "controls.csv")
    assert set(controls["mode"]) == {"from", "only", "window"}
    assert set(controls["control"]) == {"self-swap", "full swap", "no swap"}
    assert controls.groupby("mode")["n"].sum().tolist() == [15, 15, 15]
    assert controls["num_differs"].sum() == 0
    assert (controls["num_equal"] + controls["num_tie"] == controls["n"]).all()


def test_records_hold_every_variant_of_every_mode(finished: Path) -> None:
    records = [record for record in read_records(finished / "records.jsonl") if record["left_out"] is None]
    assert len(records) == 15
    for record in records:
        assert [variant["layer"] for variant in record["variants"]] == list(range(NUM_LAYERS + 1))
        assert record["variants"][-1]["response"] == record["plain_target"]
    by_mode = {mode: [record for record in records if record["mode"] == mode] for mode in ("from", "only", "window")}
    for whole, single, window in zip(*by_mode.values(), strict=True):
        assert whole["variants"][0]["response"] == whole["plain_source"]
        # The last layer alone, a window cut off at the last layer, and all layers from the last are one swap.
        shifts = [each["variants"][-2]["logprob_source"] for each in (whole, single, window)]
        assert shifts == pytest.approx([shifts[0]] * 3, abs=2e-4)
        assert whole["variants"][-3]["logprob_source"] == pytest.approx(
            window["variants"][-3]["logprob_source"], abs=2e-4
        )
        assert abs(whole["variants"][0]["logprob_source"] - whole["variants"][-1]["logprob_source"]) > 1e-3


def test_rates_have_intervals_and_blocks(finished: Path) -> None:
    rates = pd.read_csv(finished / "rates.csv", keep_default_na=False, na_values=[""])
    assert set(rates["block"]) == {"early", "mid", "late", "none"}
    unswapped = rates[(rates["layer"] == NUM_LAYERS) & (rates["metric"] == "changed")]
    assert (unswapped["rate"].dropna() == 0).all()
    known = rates[rates["n"] > 0]
    assert ((known["low"] < known["rate"] + 1e-9) & (known["rate"] < known["high"] + 1e-9)).all()
    assert (known["low"] < known["high"]).all()
    everything = rates[rates["subset"] == "all"]
    assert set((everything["n"] + everything["num_unscored"])[everything["task"] == "counting"]) == {3}
    shifts = pd.read_csv(finished / "logprobs.csv")
    assert (shifts[shifts["layer"] == NUM_LAYERS]["shift"] == 0).all()
    assert (shifts[(shifts["layer"] == 0) & (shifts["mode"] == "from")]["shift"] != 0).all()
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "rates_from.png", "rates_only.png", "rates_window.png", "logprobs.png",
    }  # fmt: skip


def test_pairs_that_cannot_be_swapped_are_listed_and_the_rest_goes_on(finished: Path) -> None:
    skipped = pd.read_csv(finished / "skipped.csv")
    assert skipped[["pair_id", "kind"]].values.tolist() == [
        ["pair-2", "unreadable_image"], ["pair-5", "unequal_grids"],
    ]  # fmt: skip
    assert "6 x 6 and 8 x 8 patches" in skipped["text"][1]
    defects = pd.read_csv(finished / "defects.csv")
    assert set(defects["kind"]) == {"unreadable_image", "unequal_sizes"}


def test_a_set_of_which_no_pair_can_be_swapped_fails_and_says_why(
    pocket_checkpoint: Path, pair_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair_set, tmp_path / "set")
    whole, unreadable, unequal = (read_pairs(pair_set)[number] for number in (0, 2, 5))
    asking = replace(whole, prompt="How many in <|vision_start|><|image_pad|><|vision_end|> ?")
    write_pairs(tmp_path / "set", [asking, unreadable, unequal])
    with pytest.raises(RuntimeError, match=r"no pair could be swapped; .*skipped\.csv says why"):
        swap(pocket_checkpoint, tmp_path / "set", tmp_path / "run")
    skipped = pd.read_csv(tmp_path / "run" / "skipped.csv").set_index("pair_id")
    assert skipped["kind"].to_dict() == {
        whole.id: "image_token_in_prompt", unreadable.id: "unreadable_image", unequal.id: "unequal_grids",
    }  # fmt: skip
    assert pd.read_csv(tmp_path / "run" / "rates.csv").empty
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_tables(
    finished: Path, pocket_checkpoint: Path, pair_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    # What a kill leaves: a batch cut in two, and the next record torn.
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**state, "status": "running"}))
    lines = (tmp_path / "run" / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "records-0.jsonl").write_bytes(b"".join(lines[:15]) + lines[15][:40])
    for name in ("records.jsonl", "rates.csv", "logprobs.csv", "controls.csv", "skipped.csv"):
        (tmp_path / "run" / name).unlink()
    swap(pocket_checkpoint, pair_set, tmp_path / "run", "--mode", "from", "only", "window")
    for name in ("records.jsonl", "rates.csv", "logprobs.csv", "controls.csv", "skipped.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_control_that_fails_fails_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = read_records(finished / "records.jsonl")
    check_controls(records)
    broken = json.loads(json.dumps(records))
    broken[3]["controls"]["full swap"] = {"status": "differs", "expected": "2", "found": "3"}
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: check_controls(broken))
    assert stop.value.code == 1
    assert f"'full swap' failed on {broken[3]['key']}" in capsys.readouterr().err


def test_controls_notice_faults(pocket_checkpoint: Path, pair_set: Path) -> None:
    model, processor = load_model(pocket_checkpoint, dtype="float32").eval(), load_processor(pocket_checkpoint)
    ready = [open_pair(model, processor, pair_set, pair, PairOptions()) for pair in read_pairs(pair_set)[:2]]
    swaps, settings = swapped_layers("from", NUM_LAYERS, 1), greedy_settings(model, processor, 6)

    def statuses(pairs: list[ReadyPair]) -> list[dict[str, str]]:
        swapped = swap_pairs(model, pairs, swaps, settings)
        return [{name: control.status for name, control in result.controls.items()} for result in swapped]

    assert statuses(ready) == [{"self-swap": "equal", "full swap": "equal", "no swap": "equal"}] * 2
    # A picture that reads differently each time it is read.
    torch.manual_seed(0)
    layer = model.base_model.language_model.layers[1]
    handle = layer.register_forward_hook(lambda module, args, output: output + 0.3 * torch.randn_like(output))
    assert all(found["self-swap"] == "differs" for found in statuses(ready))
    handle.remove()
    # Positions of an earlier prompt, as the model itself would remember them.
    shifted = []
    for pair in ready:
        positions = pair.target.position_ids.clone()
        positions[:, pair.target.num_prefix_tokens :] += 3
        shifted.append(replace(pair, target=replace(pair.target, position_ids=positions)))
    assert all(found["no swap"] == "differs" for found in statuses(shifted))


def test_replies_that_part_within_rounding_are_ties() -> None:
    ours = Reply(tokens=(5, 6, 7), margins=(3.0, 1e-5, 2.0, 4.0), finish_reason="stop")
    plain = replace(ours, margins=())
    assert compare(ours, plain, 1e-3).status == "equal"
    assert compare(ours, replace(plain, tokens=(5, 9, 7)), 1e-3).status == "tie"
    assert compare(ours, replace(plain, tokens=(8, 6, 7)), 1e-3).status == "differs"
    longer = replace(plain, tokens=(5, 6, 7, 8))  # where we ended the turn, it went on
    assert compare(ours, longer, 1e-3).status == "differs"
    assert compare(replace(ours, margins=(3.0, 1.0, 2.0, 0.0)), longer, 1e-3).status == "tie"
    assert compare(ours, replace(plain, tokens=(5,)), 1e-3).status == "tie"
    assert compare(ours, replace(plain, tokens=()), 1e-3).status == "differs"


@pytest.mark.parametrize(
    ("fixture", "num_pairs"), [("qwen2_vl_checkpoint", 5), ("qwen3_vl_checkpoint", 5), ("internvl_checkpoint", 6)]
)
@pytest.mark.cases_slow
def test_other_families(
    fixture: str, num_pairs: int, pair_set: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One pair has the image token of Qwen's models in its question, which is mere text for InternVL."""
    swap(request.getfixturevalue(fixture), pair_set, tmp_path / "run")
    controls = pd.read_csv(tmp_path / "run" / "controls.csv")
    assert controls["n"].sum() == 3 * num_pairs
    assert controls["num_differs"].sum() == 0


def test_mistakes_are_said_in_one_line(
    qwen2_checkpoint: Path, pocket_checkpoint: Path, pair_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="text-only model; expected one that sees pictures"):
        swap(qwen2_checkpoint, pair_set, tmp_path / "run")
    with pytest.raises(ValueError, match="mode 'form' is unknown; did you mean 'from'"):
        swap(pocket_checkpoint, pair_set, tmp_path / "run", "--mode", "form")
    with pytest.raises(ValueError, match="dtype 'float23' is unknown"):
        swap(pocket_checkpoint, pair_set, tmp_path / "run", "--dtype", "float23")
    with pytest.raises(ValueError, match="both named"):
        swap(pocket_checkpoint, pair_set, tmp_path / "run", "--pairs", str(pair_set / "."))
    assert not (tmp_path / "run").exists()


@needs_published
def test_published_pairs_run(pocket_checkpoint: Path, tmp_path: Path) -> None:
    sets = []
    for task in ("ocr", "counting", "grounding", "recognition"):
        directory = tmp_path / task
        directory.mkdir()
        (directory / "images").symlink_to((PUBLISHED / task / "images").resolve())
        lines = (PUBLISHED / task / "data.jsonl").read_text().splitlines(keepends=True)
        (directory / "data.jsonl").write_text(lines[0])
        sets += ["--pairs", str(directory)]
    main(["--model", str(pocket_checkpoint), *sets, "--output-dir", str(tmp_path / "run"), "--max_new_tokens", "4"])
    rates = pd.read_csv(tmp_path / "run" / "rates.csv")
    assert set(rates["set"]) == {"ocr", "counting", "grounding", "recognition"}
    assert pd.read_csv(tmp_path / "run" / "controls.csv")["num_differs"].sum() == 0


@pytest.mark.slow
@needs_published
def test_all_published_pairs_run(tmp_path: Path) -> None:
    """With a model of three layers: what may fail depends on the pairs."""
    write_pocket_checkpoint(tmp_path / "model", shape=PocketShape(num_layers=3), seed=0)
    sets = [str(PUBLISHED / task) for task in ("ocr", "counting", "grounding", "recognition")]
    main(["--model", str(tmp_path / "model"), "--pairs", *sets, "--output-dir", str(tmp_path / "run"),
          "--max_new_tokens", "2"])  # fmt: skip
    controls = pd.read_csv(tmp_path / "run" / "controls.csv")
    skipped = pd.read_csv(tmp_path / "run" / "skipped.csv")
    assert controls.groupby("control")["n"].sum().tolist() == [400 - len(skipped)] * 3
    assert controls["num_differs"].sum() == 0
