"""A set's dataset card: true of the set, and what `load_dataset` needs to find it; and its way to a hub."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from data_builders import build, hub_set
from data_builders.hub_set import main
from data_builders.pairs.files import read_pairs
from tracking.command import REPOSITORY_ROOT

NUM_PAIRS = 3


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("built")
    build.main(
        ["pocket_pairs", "--seed", "11", "--num-pairs", str(NUM_PAIRS), "--split", "validation", "--num-workers", "1",
         "--kinds", "counting", "colour", "blank", "--output-dir", str(output_dir)]
    )  # fmt: skip
    return output_dir / "data"


def write_card(built: Path, path: Path, *more: str) -> tuple[dict[str, Any], str]:
    """Returns the card's metadata and its text."""
    main([str(built), "--repo-id", "someone/pocket-pairs", "--dry-run", "--output", str(path), *more])
    _, front, text = path.read_text().split("---\n", maxsplit=2)
    return yaml.safe_load(front), text


def test_a_dry_run_shows_the_card_and_leaves_the_set_as_it_is(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(built.rglob("*"))
    main([str(built), "--repo-id", "someone/pocket-pairs", "--dry-run"])
    assert capsys.readouterr().out.startswith("---\n")
    assert sorted(built.rglob("*")) == before


def test_the_card_says_how_the_set_was_built_and_what_it_holds(built: Path, tmp_path: Path) -> None:
    front, text = write_card(built, tmp_path / "card.md")
    assert front["license"] == "mit"
    assert front["size_categories"] == ["n<1K"]
    assert "from seed 11" in text
    assert f"{NUM_PAIRS} pairs of pictures" in text
    arguments = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert arguments["kinds"] == ["counting", "colour", "blank"]
    assert arguments["num_pairs"] == NUM_PAIRS
    for name in (read_pairs(built)[0].meta or {}).keys() | {"prompt", "target", "source", "target_answer"}:
        assert f"| `{name}` |" in text
    assert "target_box" not in text
    for row in ("| counting | 1 |", "| ocr | 1 |", "| recognition | 1 |"):
        assert row in text


def test_a_set_with_its_card_loads_by_its_name_alone(built: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    repository = tmp_path / "repository"
    shutil.copytree(built, repository)
    write_card(built, repository / "README.md")
    loaded = load_dataset(str(repository), split="validation", cache_dir=str(tmp_path / "cache"))
    pairs = read_pairs(built)
    assert loaded["id"][:] == [pair.id for pair in pairs]
    for row, pair in zip(loaded, pairs, strict=True):
        assert (row["prompt"], row["target_answer"]) == (pair.prompt, pair.target_answer)
        for side, name in (("target", pair.target_image), ("source", pair.source_image)):
            assert row[side].tobytes() == Image.open(built / name).tobytes()


def test_photographs_need_their_licence_named(built: Path, tmp_path: Path) -> None:
    directory = tmp_path / "set"
    shutil.copytree(built, directory)
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"task": "pocket_pairs"', '"task": "recognition"'))
    with pytest.raises(ValueError, match="name their licence as the hub spells it, such as --license"):
        write_card(directory, tmp_path / "card.md")
    front, _ = write_card(directory, tmp_path / "card.md", "--license", "cc-by-4.0")
    assert front["license"] == "cc-by-4.0"


@pytest.mark.parametrize("name", ["pairs", "a/b/c", "someone/pairs@main", ""])
def test_what_is_no_name_of_a_repository_is_refused(built: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a repository name; expected OWNER/NAME"):
        main([str(built), "--repo-id", name, "--dry-run"])


def test_the_output_directory_of_a_build_names_its_set(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = []
    for named in (built, built.parent):
        main([str(named), "--repo-id", "a/b", "--dry-run"])
        cards.append(capsys.readouterr().out)
    assert cards[0] == cards[1]


def test_what_was_not_built_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no set of pairs"):
        main([str(tmp_path), "--repo-id", "a/b", "--dry-run"])
    shutil.copytree(built, tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds no manifest\.json; expected a set that data_builders\.build wrote"):
        main([str(tmp_path / "set"), "--repo-id", "a/b", "--dry-run"])


def test_more_files_than_the_hub_takes_are_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_set, "MAX_FILES", 2 * NUM_PAIRS - 1)
    with pytest.raises(ValueError, match="holds 6 files; the hub takes up to 5 a folder: build sets of at most 2"):
        hub_set.to_hub(built, "a/b")


@dataclass
class ReceivingHub:
    """A hub on this machine that takes one repository, as much of its interface as an upload needs."""

    refuses: bool = False
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    """The files of each."""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuses:
            return 403, {"error": "You don't have the rights"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"http://127.0.0.1/datasets/{REPOSITORY}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"/api/datasets/{REPOSITORY}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {
                "files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            }
        assert path == f"/api/datasets/{REPOSITORY}/commit/main", path
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
        url = f"http://127.0.0.1/datasets/{REPOSITORY}/commit/{len(self.commits)}"
        return 200, {"commitUrl": url, "commitOid": str(len(self.commits))}


REPOSITORY = "someone/pairs"


@pytest.fixture
def receiving_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReceivingHub]:
    from huggingface_hub import constants

    here = ReceivingHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, found = here.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    yield here
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_upload_brings_every_file_and_the_card_last(
    built: Path, receiving_hub: ReceivingHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(built), "--repo-id", REPOSITORY, "--private"])
    assert capsys.readouterr().out.endswith(f"datasets/{REPOSITORY}\n")
    (created,) = receiving_hub.created
    assert (created["name"], created["organization"], created["type"]) == ("pairs", "someone", "dataset")
    assert created.get("private", created.get("visibility") == "private")
    files, card = receiving_hub.commits
    assert files == {path.relative_to(built).as_posix(): path.read_bytes() for path in built.rglob("*.*")}
    main([str(built), "--repo-id", REPOSITORY, "--dry-run", "--output", str(tmp_path / "card.md")])
    assert card == {"README.md": (tmp_path / "card.md").read_bytes()}


def test_a_hub_that_refuses_is_one_line(built: Path, receiving_hub: ReceivingHub) -> None:
    receiving_hub.refuses = True
    with pytest.raises(ValueError, match=r"someone/pairs cannot be written: .* answers 403; the token on this machine"):
        main([str(built), "--repo-id", REPOSITORY])
    assert not receiving_hub.commits


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "nobody is logged in, so someone/pairs cannot be written: run hf auth login, or set HF_TOKEN"),
        ({"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        ({"HF_TOKEN": "hf_x", "HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
@pytest.mark.cases_slow
def test_an_upload_that_cannot_be_is_one_line(
    built: Path, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "data_builders.hub_set", str(built), "--repo-id", "someone/pairs"],
        cwd=REPOSITORY_ROOT,
        env={**kept, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
