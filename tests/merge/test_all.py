"""Every pattern of two donors, at the depths of the real models, against tensor-by-tensor references, and reloaded."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from merge.all import main
from merge.splice import main as splice
from models.loading import load_processor
from tests.merge.donors import Donors, Tensors, read_tensors

PAPER = {"in-rl-rl", "in-in-rl", "rl-rl-in", "rl-in-in", "in-rl-in", "rl-in-rl"}
ALL = {"-".join(pattern) for pattern in product(("in", "rl"), repeat=3)}
CUTS = {28: (9, 18), 36: (12, 24), 12: (4, 8)}
"""In thirds."""
SPEAK = {"in-in-in", "in-rl-in", "rl-rl-rl"}
"""Patterns that are loaded and asked; of the others the tensors are compared alone."""


def replies(directory: Path) -> list[int]:
    """What a checkpoint says about a picture: four tokens, greedily."""
    model, information = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    processor = load_processor(directory)
    content = [{"type": "image"}, {"type": "text", "text": "How many objects are there ?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (56, 56), "red")], return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return list(generated[0, inputs["input_ids"].shape[1] :].tolist())


def assert_holds(checkpoint: Path, expected: Tensors) -> None:
    tensors = read_tensors(checkpoint)
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("num_layers", "tied", "swapped"), [(28, False, True), (36, True, False), (12, True, True), (12, False, False)]
)
def test_all_patterns_equal_the_reference(
    make_donors: Callable[..., Donors], tmp_path: Path, num_layers: int, tied: bool, swapped: bool
) -> None:
    donors = make_donors(num_layers, tied=tied, swapped=swapped)
    main([*donors.flags, "--rest", "in", "--patterns", "all", "--output-dir", str(tmp_path / "run")])
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == ALL
    for folder in ALL:
        expected = donors.expected(folder.replace("-", ":"), "in", CUTS[num_layers])
        assert_holds(tmp_path / "run" / folder / "checkpoint", expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_layers", "tied", "cuts"), [(28, False, (10, 19)), (36, True, (12, 24)), (12, True, (4, 8))]
)
def test_all_patterns_in_the_papers_partition_load_and_see(
    make_donors: Callable[..., Donors], tmp_path: Path, num_layers: int, tied: bool, cuts: tuple[int, int]
) -> None:
    donors = make_donors(num_layers, tied=tied)
    flags = [*donors.flags, "--rest", "rl", "--partition", "paper", "--patterns", "all"]
    main([*flags, "--output-dir", str(tmp_path / "run")])
    said = {}
    for folder in ALL:
        checkpoint = tmp_path / "run" / folder / "checkpoint"
        assert_holds(checkpoint, donors.expected(folder.replace("-", ":"), "rl", cuts))
        if folder in SPEAK:
            said[folder] = tuple(replies(checkpoint))
    assert said["rl-rl-rl"] == tuple(replies(donors.paths["rl"])) and len(set(said.values())) > 1


def test_patterns_with_every_region_said_take_each_from_its_owner(
    make_donors: Callable[..., Donors], tmp_path: Path
) -> None:
    donors = make_donors(12, tied=False)
    rest = ["vision=in", "projector=rl", "embed=in", "norm=rl", "head=rl"]
    main([*donors.flags, "--rest", *rest, "--output-dir", str(tmp_path / "run")])
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == PAPER
    tensors = {name: read_tensors(path) for name, path in donors.paths.items()}
    for folder in PAPER:
        written = read_tensors(tmp_path / "run" / folder / "checkpoint")
        for name, owner in (
            ("model.visual.patch_embed.proj.weight", "in"),
            ("model.visual.blocks.1.attn.qkv.weight", "in"),
            ("model.visual.merger.mlp.0.weight", "rl"),
            ("model.language_model.embed_tokens.weight", "in"),
            ("model.language_model.norm.weight", "rl"),
            ("lm_head.weight", "rl"),
        ):
            assert torch.equal(written[name], tensors[owner][name]), (folder, name)


@pytest.mark.slow
def test_unmixed_patterns_need_no_second_donor_and_reproduce_theirs(donors: Donors, tmp_path: Path) -> None:
    main([*donors.flags, "--rest", "rl", "--patterns", "all", "--output-dir", str(tmp_path / "run")])
    assert_holds(tmp_path / "run" / "rl-rl-rl" / "checkpoint", read_tensors(donors.paths["rl"]))


@pytest.mark.slow
def test_a_pattern_written_among_others_is_that_of_merge_splice(donors: Donors, tmp_path: Path) -> None:
    def contents(directory: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    main([*donors.flags, "--rest", "in", "--output-dir", str(tmp_path / "run")])
    alone = ["--pattern", "in:rl:in", *donors.flags, "--rest", "in", "--output-dir"]
    splice([*alone, str(tmp_path / "alone")])
    one, other = tmp_path / "alone" / "checkpoint", tmp_path / "run" / "in-rl-in" / "checkpoint"
    assert contents(one) == contents(other)
    splice([*alone, str(tmp_path / "run" / "in-rl-in")])


def test_interrupted_set_is_continued_and_a_finished_one_left_alone(donors: Donors, tmp_path: Path) -> None:
    arguments = [*donors.flags, "--rest", "in", "--output-dir", str(tmp_path / "run")]
    main(arguments)
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    main(arguments)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "status": "running"}))
    records = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(records[:-2]))
    last = json.loads(records[-1])["key"]
    shutil.rmtree(run / last)
    main(arguments)
    assert (run / "records.jsonl").read_text().splitlines(keepends=True) == records
    assert_holds(run / last / "checkpoint", donors.expected(last.replace("-", ":"), "in", (2, 4)))
    kept = {path: when for path, when in before.items() if path.parent.name == "checkpoint" and last not in path.parts}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_dry_run_prints_every_plan_and_writes_nothing(
    donors: Donors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*donors.flags, "--rest", "in", "--patterns", "all", "--dry-run", "--output-dir", str(tmp_path / "run")])
    printed = capsys.readouterr().out.splitlines()
    assert {line.removesuffix(":") for line in printed if line and not line.startswith(" ")} == ALL
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--donor", "in=a", "--rest", "in"], r"--donor names 1 donors \(in\); expected exactly two"),
        (["--donor", "in=a", "rl=b", "base=c", "--rest", "in"], "--donor names 3 donors"),
        (["--donor", "in=a", "rl=b", "--rest", "in", "--patterns", "six"], "--patterns 'six' is unknown"),
        (["--donor", "in=a", "rl=b", "--rest", "base"], "rest vision: 'base' is not a donor"),
        (["--donor", "in=missing", "rl=missing", "--rest", "in"], "checkpoint missing does not exist"),
    ],
)
def test_mistaken_arguments_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*arguments, "--output-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_donor_names_that_would_share_a_folder_are_refused(donors: Donors, tmp_path: Path) -> None:
    flags = ["--donor", f"a={donors.paths['in']}", f"a-a={donors.paths['rl']}", "--rest", "a"]
    with pytest.raises(ValueError, match="two patterns give the same folder 'a-a"):
        main([*flags, "--patterns", "all", "--output-dir", str(tmp_path / "run")])
