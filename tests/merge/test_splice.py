"""Written splices against tensor-by-tensor references, reloaded, killed, continued, and refused."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merge.splice import check_room, main, parse_size
from merge.verify import main as verify
from models.checkpoint import INDEX_FILE, WEIGHTS_FILE, open_checkpoint
from models.loading import load_model
from models.pocket import PocketShape, write_pocket_checkpoint
from tests.merge.donors import Donors, Tensors, read_tensors, respell
from tests.models.damage import DAMAGES, MISFITS
from tracking.command import REPOSITORY_ROOT

BESIDE = {"README.md", "splice.json"}
PATTERN = ["--pattern", "in:rl:rl", "--rest", "in"]


def splice(directory: Path, *arguments: str) -> Path:
    main([*arguments, "--output-dir", str(directory)])
    return directory / "checkpoint"


def same(one: Tensors, other: Tensors) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def contents(directory: Path, leaving_out: set[str] = frozenset()) -> dict[str, bytes]:  # type: ignore[assignment]
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in leaving_out)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_pattern_equals_the_reference_in_explicit_cuts(donors: Donors, tmp_path: Path) -> None:
    checkpoint = splice(tmp_path / "run", *PATTERN, *donors.flags, "--cuts", "1", "3")
    assert same(read_tensors(checkpoint), donors.expected("in:rl:rl", "in", (1, 3)))


def test_recipe_of_ranges_and_halves_of_layers_equals_the_reference(donors: Donors, tmp_path: Path) -> None:
    recipe = {
        "donors": {name: str(path) for name, path in donors.paths.items()},
        "blocks": {"llm:0": "rl", "llm:1-3.attn": "in", "llm:1-3.mlp": "rl", "llm:4-5": "in"},
        "rest": {"vision": "in", "vision:1": "rl", "projector": "rl", "embed": "in", "norm": "rl"},
        "files": "rl",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    checkpoint = splice(tmp_path / "run", "--recipe", str(tmp_path / "recipe.yaml"))
    tensors = {name: read_tensors(path) for name, path in donors.paths.items()}
    from_rl = ("layers.0.", "visual.blocks.1.", "visual.merger.", "language_model.norm.")
    halves = [f"layers.{layer}.{part}" for layer in (1, 2, 3) for part in ("mlp.", "post_attention_layernorm.")]
    expected = {
        name: tensors["rl" if any(part in name for part in (*from_rl, *halves)) else "in"][name]
        for name in tensors["in"]
    }
    assert same(read_tensors(checkpoint), expected)


@pytest.mark.parametrize("kind", ["whole, hub spelling", "sharded, in-memory spelling"])
@pytest.mark.parametrize("tied", [True, False])
def test_splice_of_one_donor_is_that_donor_file_by_file(
    make_donors: Callable[..., Donors], tmp_path: Path, kind: str, tied: bool
) -> None:
    start = make_donors(6, tied=tied).paths["in" if kind.startswith("whole") else "rl"]
    flags = ["--pattern", "sft:sft:sft", "--donor", f"sft={start}", "--rest", "sft"]
    checkpoint = splice(tmp_path / "run", *flags)
    assert contents(checkpoint, leaving_out=BESIDE) == contents(start)


def test_metadata_and_header_of_the_first_donor_are_kept_byte_for_byte(donors: Donors, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(donors.paths["in"], start)
    save_file(load_file(start / WEIGHTS_FILE), start / WEIGHTS_FILE, metadata={"format": "pt", "made": "by hand"})
    flags = ["--donor", f"in={start}", "--donor", f"rl={donors.paths['rl']}"]
    written = (splice(tmp_path / "run", *PATTERN, *flags) / WEIGHTS_FILE).read_bytes()
    before = (start / WEIGHTS_FILE).read_bytes()
    length = 8 + int.from_bytes(before[:8], "little")
    assert b"by hand" in before[:length] and written[:length] == before[:length] and written != before


@pytest.mark.parametrize("size", ["100KB", "1B", "1GB"])
@pytest.mark.cases_slow
def test_shards_of_a_chosen_size_hold_the_same_tensors_and_load(donors: Donors, tmp_path: Path, size: str) -> None:
    size = size.removesuffix("B") if size == "1B" else size
    checkpoint = splice(tmp_path / "run", *PATTERN, *donors.flags, "--max-shard-size", size)
    assert same(read_tensors(checkpoint), donors.expected("in:rl:rl", "in", (2, 4)))
    files = sorted(checkpoint.glob("*.safetensors"))
    assert (checkpoint / INDEX_FILE).exists() == (size != "1GB") and (len(files) == 1) == (size == "1GB")
    _, information = type(load_model(checkpoint)).from_pretrained(checkpoint, output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]


def test_written_dtype_is_the_donors_own(donors: Donors, tmp_path: Path) -> None:
    flags = []
    for name, path in donors.paths.items():
        half = respell(path, tmp_path / name)
        save_file({key: value.bfloat16() for key, value in read_tensors(path).items()}, half / WEIGHTS_FILE)
        flags += ["--donor", f"{name}={half}"]
    checkpoint = splice(tmp_path / "run", *PATTERN, *flags)
    expected = {name: tensor.bfloat16() for name, tensor in donors.expected("in:rl:rl", "in", (2, 4)).items()}
    assert same(read_tensors(checkpoint), expected)


def test_second_copy_of_a_tied_head_is_written_from_the_embeddings_owner(donors: Donors, tmp_path: Path) -> None:
    start = respell(donors.paths["in"], tmp_path / "start")
    tensors = load_file(start / WEIGHTS_FILE)
    embed = "model.language_model.embed_tokens.weight"
    save_file({**tensors, "lm_head.weight": tensors[embed].clone()}, start / WEIGHTS_FILE, metadata={"format": "pt"})
    flags = ["--pattern", "in:in:in", "--donor", f"in={start}", "--donor", f"rl={donors.paths['rl']}"]
    rest = [f"{region}={'rl' if region == 'embed' else 'in'}" for region in ("vision", "projector", "embed", "norm")]
    written = load_file(splice(tmp_path / "run", *flags, "--rest", *rest) / WEIGHTS_FILE)
    expected = read_tensors(donors.paths["rl"])[embed]
    assert torch.equal(written["lm_head.weight"], expected) and torch.equal(written[embed], expected)
    assert not torch.equal(expected, tensors[embed])
    main([*flags, "--rest", *rest, "--dry-run"])


def test_splice_json_says_owner_source_and_sha256_of_every_tensor(donors: Donors, tmp_path: Path) -> None:
    checkpoint = splice(tmp_path / "run", *PATTERN, *donors.flags)
    description = json.loads((checkpoint / "splice.json").read_text())
    opened = {name: open_checkpoint(path) for name, path in donors.paths.items()}
    written = open_checkpoint(checkpoint)
    assert set(description["tensors"]) == {stored.name_on_disk for stored in written.tensors.values()}
    for stored in written.tensors.values():
        entry = description["tensors"][stored.name_on_disk]
        source = opened[entry["owner"]].tensors[stored.name]
        assert entry["sources"] == [{"donor": entry["owner"], "file": source.file.name, "name": source.name_on_disk}]
        assert entry["sha256"] == hashlib.sha256(written.data(stored.name)).hexdigest()
        assert (entry["name"], entry["file"], entry["dtype"]) == (stored.name, stored.file.name, stored.dtype)
    assert description["recipe"]["rest"] == dict.fromkeys(("vision", "projector", "embed", "norm", "head"), "in")
    assert description["donors"]["rl"] == {
        "checkpoint": str(donors.paths["rl"]), "revision": None, "fingerprint": opened["rl"].fingerprint()
    }  # fmt: skip
    config = hashlib.sha256((donors.paths["in"] / "config.json").read_bytes()).hexdigest()
    assert description["files"]["config.json"] == {"donor": "in", "sha256": config, "others": {"rl": "same"}}


def test_splice_is_written_from_a_source_tree_that_is_not_installed(
    donors: Donors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    checkpoint = splice(tmp_path / "run", *PATTERN, *donors.flags)
    project = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text())["project"]
    versions = json.loads((checkpoint / "splice.json").read_text())["versions"]
    assert versions[project["name"]] == project["version"]


def test_model_card_tells_who_gave_what_and_where_the_donors_differ(donors: Donors, tmp_path: Path) -> None:
    other = tmp_path / "rl"
    shutil.copytree(donors.paths["rl"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "video_token_id": 3}))
    card = (
        splice(tmp_path / "run", *PATTERN, "--donor", f"in={donors.paths['in']}", "--donor", f"rl={other}")
        / "README.md"
    ).read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in front and "qwen2_5_vl" in front["tags"]
    for line in (
        f"- **in**: `{donors.paths['in']}`",
        f"- **rl**: `{other}`",
        "| late | 4-5 | rl | 24 |",
        "| config.json | differs in video_token_id |",
        "tied: it is the embedding matrix",
    ):
        assert line in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["blocks"] == {"early": "in", "mid": "rl", "late": "rl"}


def put_into_cache(cache: Path, repo: str, checkpoint: Path, commit: str) -> None:
    """Lays a checkpoint out as huggingface_hub caches it: links to blobs, in a folder named after the commit."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        shutil.copy(path, folder / "blobs" / f"{commit}{number}")
        (folder / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{commit}{number}")


def test_hub_ids_are_read_from_the_cache_and_pinned_to_their_commit(
    donors: Donors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_into_cache(tmp_path / "cache", "owner/cold-start", donors.paths["in"], "1" * 40)
    put_into_cache(tmp_path / "cache", "owner/rl", donors.paths["rl"], "2" * 40)
    flags = [*PATTERN, "--donor", "in=owner/cold-start", "--donor", "rl=owner/rl@main"]
    checkpoint = splice(tmp_path / "run", *flags)
    assert same(read_tensors(checkpoint), donors.expected("in:rl:rl", "in", (2, 4)))
    described = json.loads((checkpoint / "splice.json").read_text())["donors"]
    assert {name: facts["revision"] for name, facts in described.items()} == {"in": "1" * 40, "rl": "2" * 40}
    card = (checkpoint / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/cold-start", "owner/rl"]
    assert f"- **rl**: `owner/rl@main` at commit `{'2' * 40}`" in card
    put_into_cache(tmp_path / "cache", "owner/rl", donors.paths["in"], "3" * 40)
    verify([str(checkpoint)])
    with pytest.raises(ValueError, match=r"was made with donors\.rl\.(fingerprint|revision)"):
        splice(tmp_path / "run", *flags)


def test_dry_run_prints_the_plan_and_writes_nothing(
    donors: Donors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*PATTERN, *donors.flags, "--output-dir", str(tmp_path / "run"), "--dry-run"])
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    num_bytes = sum(t.numel() * 4 for n, t in read_tensors(donors.paths["in"]).items() if ".layers.2." in n)
    assert rows["mid"][1:4] == ["2-3", "rl", "24"] and rows["mid"][4] == f"{2 * num_bytes / 1024:.1f}"
    assert rows["model.safetensors"][1] == rows["all"][1] == str(len(read_tensors(donors.paths["in"])))
    assert rows["config.json"] == ["config.json", "same"]


def test_repeating_the_command_does_nothing(donors: Donors, tmp_path: Path) -> None:
    def stand() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}

    splice(tmp_path / "run", *PATTERN, *donors.flags)
    before = stand()
    splice(tmp_path / "run", *PATTERN, *donors.flags)
    assert stand() == before
    with pytest.raises(ValueError, match=r"was made with recipe\.blocks\.early = 'in', now it is 'rl'"):
        splice(tmp_path / "run", "--pattern", "rl:rl:rl", "--rest", "in", *donors.flags)


KILLED_IN_THE_THIRD_SHARD = """
import sys, time
from pathlib import Path
import merge.splice

written, count = merge.splice.write_shard, 0

def write_two(path, header, sources, **options):
    global count
    count += 1
    if count == 3:
        path.write_bytes(header + b"torn")
        print("ready", flush=True)
        time.sleep(60)
    return written(path, header, sources, **options)

merge.splice.write_shard = write_two
merge.splice.main(sys.argv[1:])
"""


def kill_in_the_third_shard(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_IN_THE_THIRD_SHARD, *arguments],
        cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.kill()


def test_killed_splice_is_continued_and_ends_byte_equal(donors: Donors, tmp_path: Path) -> None:
    flags = [*PATTERN, *donors.flags, "--max-shard-size", "100KB"]
    undisturbed = splice(tmp_path / "undisturbed", *flags)
    kill_in_the_third_shard([*flags, "--output-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "checkpoint").exists()
    partial = tmp_path / "run" / ".partial-checkpoint"
    assert len(list(partial.iterdir())) == 3
    kept = {path.name: path.stat().st_mtime_ns for path in sorted(partial.iterdir())[:2]}
    checkpoint = splice(tmp_path / "run", *flags)
    assert contents(checkpoint) == contents(undisturbed)
    assert {name: (checkpoint / name).stat().st_mtime_ns for name in kept} == kept
    assert not partial.exists()


def test_killed_splice_whose_finished_shards_were_removed_or_cut_writes_them_again(
    donors: Donors, tmp_path: Path
) -> None:
    flags = [*PATTERN, *donors.flags, "--max-shard-size", "100KB"]
    undisturbed = splice(tmp_path / "undisturbed", *flags)
    kill_in_the_third_shard([*flags, "--output-dir", str(tmp_path / "run")])
    first, second, _ = sorted((tmp_path / "run" / ".partial-checkpoint").iterdir())
    first.unlink()
    os.truncate(second, second.stat().st_size - 1)
    assert contents(splice(tmp_path / "run", *flags)) == contents(undisturbed)


def test_donor_that_changed_between_two_attempts_is_refused(donors: Donors, tmp_path: Path) -> None:
    other = respell(donors.paths["rl"], tmp_path / "rl")
    flags = [*PATTERN, "--donor", f"in={donors.paths['in']}", "--donor", f"rl={other}", "--max-shard-size", "100KB"]
    kill_in_the_third_shard([*flags, "--output-dir", str(tmp_path / "run")])
    tensors = load_file(other / WEIGHTS_FILE)
    name = "model.language_model.layers.5.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name] + 1}, other / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"was made with donors\.rl\.fingerprint = .*--overwrite"):
        splice(tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "checkpoint").exists()
    checkpoint = splice(tmp_path / "run", *flags, "--overwrite")
    assert torch.equal(read_tensors(checkpoint)[name], tensors[name] + 1)


@pytest.mark.slow
def test_splice_killed_at_any_moment_ends_byte_equal(tmp_path: Path) -> None:
    shape = PocketShape(num_layers=8, hidden_size=256, mlp_size=768)
    flags = [*PATTERN, "--max-shard-size", "4MB"]
    for seed, name in enumerate(("in", "rl")):
        write_pocket_checkpoint(tmp_path / name, shape=shape, seed=seed)
        flags += ["--donor", f"{name}={tmp_path / name}"]
    undisturbed = splice(tmp_path / "undisturbed", *flags)
    command = [sys.executable, "-m", "merge.splice", *flags, "--output-dir", str(tmp_path / "run")]
    num_killed, delay = 0, 0.2
    while True:
        with subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.DEVNULL) as child:
            try:
                child.wait(delay)
            except subprocess.TimeoutExpired:
                child.kill()
                num_killed += 1
                delay += 0.02
                continue
        assert child.returncode == 0
        break
    assert num_killed >= 3
    assert contents(tmp_path / "run" / "checkpoint") == contents(undisturbed)


@pytest.mark.parametrize("name", [*DAMAGES, *MISFITS])
def test_damaged_donor_is_one_line_and_leaves_nothing(donors: Donors, tmp_path: Path, name: str) -> None:
    damage, message = (DAMAGES | MISFITS)[name]
    damaged = Path(shutil.copytree(donors.paths["in"], tmp_path / "donor"))
    damage(damaged)
    flags = ["--donor", f"in={damaged}", "--donor", f"rl={donors.paths['rl']}"]
    with pytest.raises(ValueError, match=message) as caught:
        splice(tmp_path / "run", *PATTERN, *flags)
    assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_place_inside_or_around_a_donor_is_refused(donors: Donors, tmp_path: Path) -> None:
    own = Path(shutil.copytree(donors.paths["in"], tmp_path / "runs" / "sft"))
    before = contents(tmp_path)
    for place in (own, own / "splice", tmp_path / "runs", tmp_path):
        with pytest.raises(ValueError, match="are nested"):
            splice(place, *PATTERN, "--donor", f"in={own}", "--donor", f"rl={donors.paths['rl']}", "--overwrite")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --recipe FILE, or --pattern"),
        ([*PATTERN, "--recipe", "x.yaml"], "expected either --recipe FILE, or --pattern"),
        (["--recipe", "x.yaml", "--donor", "in=a"], "--donor requires --pattern"),
        (["--recipe", "missing.yaml"], "missing.yaml: no such file"),
        ([*PATTERN, "--donor", "in=missing", "--donor", "rl=missing"], "checkpoint missing does not exist"),
        ([*PATTERN, "--max-shard-size", "five"], "--max-shard-size 'five' is not a size"),
        ([*PATTERN, "--max-shard-size", "0GB"], "--max-shard-size '0GB' is not a size"),
        ([*PATTERN, "--donors", "in=a"], "unknown argument '--donors'; did you mean '--donor'"),
    ],
)
def test_mistaken_arguments_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*arguments, "--output-dir", "unused"])
    assert not Path("unused").exists()


def test_output_directory_is_asked_for(donors: Donors) -> None:
    with pytest.raises(ValueError, match="--output-dir is missing"):
        main([*PATTERN, *donors.flags])


def test_what_the_disk_cannot_hold_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has .* free, but .* would be written; free some space"):
        check_room(tmp_path, 2**60)
    check_room(tmp_path / "not" / "there", 1)


def test_sizes_are_read_as_transformers_counts_them() -> None:
    assert [parse_size(text) for text in ("5GB", "1.5MB", "2GiB", "7", None)] == [5 * 10**9, 1_500_000, 2**31, 7, None]


@pytest.mark.slow
def test_splice_imports_no_torch_and_stays_small(tmp_path: Path) -> None:
    shape = PocketShape(num_layers=6, hidden_size=512, mlp_size=2048)
    flags = list(PATTERN)
    for seed, name in enumerate(("in", "rl")):
        write_pocket_checkpoint(tmp_path / name, shape=shape, seed=seed)
        flags += ["--donor", f"{name}={tmp_path / name}"]
    script = (
        "import sys, resource; from merge.splice import main; main(sys.argv[1:])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
        "print(open('/proc/self/status').read())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, *flags, "--output-dir", str(tmp_path / "run")],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "\nFalse False\n" in printed
    status = dict(line.split(":", 1) for line in printed.splitlines() if ":" in line)
    assert int(status["VmHWM"].split()[0]) < 300 * 1024
