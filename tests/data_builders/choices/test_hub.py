"""Are the splits of a hub data set read, with their pictures as bytes, from the cache?"""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_builders import build
from data_builders.prompt_sets.prompts import read_prompts


def test_a_hub_data_set_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "c" * 40
    for number, split in enumerate(("train", "test")):
        buffer = BytesIO()
        Image.fromarray(np.full((56, 56, 3), 60 * number, np.uint8)).save(buffer, "PNG")
        rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "question": f"is it {split}?", "answer": "yes"}]
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    cached = tmp_path / "cache" / "datasets--owner--path-vqa"
    shutil.copytree(tmp_path / "hub", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = ["--source", "owner/path-vqa", "--hub_splits", "train", "test", "--output-dir", str(tmp_path / "out")]
    build.main(["choices", *words])
    data = tmp_path / "out" / "data"
    assert [prompt.question for prompt in read_prompts(data, "rl")] == ["is it train?"]
    assert [prompt.question for prompt in read_prompts(data, "test")] == ["is it test?"]
    source = json.loads((data / "manifest.json").read_text())["arguments"]["source"]
    assert source == {"owner/path-vqa/test": commit, "owner/path-vqa/train": commit}
