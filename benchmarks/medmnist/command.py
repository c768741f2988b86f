"""How fast does a file of MedMNIST become a prompt set? Seconds and memory, until a vision tower has read it.

    OMP_NUM_THREADS=1 python -m benchmarks.medmnist
    OMP_NUM_THREADS=1 python -m benchmarks.medmnist --num-pictures 2000 --memory-pictures 0

Two ways from the same `pathmnist_224.npz` (RGB, deflated), side by side in one run:

    stream   `data_builders.build medmnist`, which writes each picture of the archive once
    decode   what `data_builders.build rl` asks for: `numpy.load`, each picture as PNG in the rows of a Parquet file,
             then `data_builders.build rl`, which decodes it and writes it again

After each, the pictures of the set are read as `eval.tower` reads those of a folder: decoded for their digests, and
decoded again for the features; the tower itself is left out. Seconds are those of the whole processes, from their start
to their end, the median over rounds; the ways alternate.

The pictures are smooth random fields with noise; `compressed_frac` is their size after deflate. The bar is a third of
the time of `decode`. `memory` is `stream`, and `eval.tower` reading the archive itself, on archives of growing size:
peak memory of all processes (PSS), shared pages counted once. These pictures have one level except for a few pixels,
since memory does not depend on their content; so the seconds are no measure of speed.

Writes `benchmarks/results/medmnist.json`.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from benchmarks.pocket import MemoryWatch
from data_builders.medmnist.sets import SETS
from tracking.command import REPOSITORY_ROOT
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "medmnist.json"
BAR = 3.0
SIDE = 224
NUM_CLASSES = len(SETS["pathmnist"].names)
NUM_HELD_OUT = NUM_CLASSES
"""Pictures of the validation and of the test split."""
FIELDS_A_BLOCK = 64
WAYS = ("stream", "decode")
SELF, BUILD = "benchmarks.medmnist", "data_builders.build"


def draw_fields(rng: np.random.Generator) -> np.ndarray:
    """Returns smooth random RGB fields with fine structure: [FIELDS_A_BLOCK, SIDE, SIDE, 3]."""
    from scipy.ndimage import gaussian_filter

    def smooth(width: float, level: float) -> np.ndarray:
        found: np.ndarray = gaussian_filter(rng.normal(size=(FIELDS_A_BLOCK, SIDE, SIDE, 3)), (0, width, width, 0.5))
        scaled: np.ndarray = found * (level / found.std())
        return scaled

    fields: np.ndarray = smooth(8, 40) + smooth(1.5, 10) + 128
    return fields


def iter_pictures(num_pictures: int) -> Iterator[np.ndarray]:
    """Yields blocks of pictures, no two of them equal."""
    rng = np.random.default_rng(0)
    fields = draw_fields(rng)
    for start in range(0, num_pictures, FIELDS_A_BLOCK):
        noise = rng.normal(scale=2, size=(SIDE, SIDE, 3))
        block = np.clip(fields[: num_pictures - start] + noise, 0, 255)
        yield block.astype(np.uint8)


def iter_plain(num_pictures: int) -> Iterator[np.ndarray]:
    """Yields blocks of pictures of one level, with their numbers in the first pixel."""
    for start in range(0, num_pictures, FIELDS_A_BLOCK):
        block = np.full((min(FIELDS_A_BLOCK, num_pictures - start), SIDE, SIDE, 3), 128, np.uint8)
        numbers = np.arange(start, start + len(block), dtype=np.uint32)
        block[:, 0, 0] = np.stack([numbers >> shift & 255 for shift in (16, 8, 0)], axis=1)
        yield block


def write_archive(path: Path, num_pictures: int, *, plain: bool = False) -> None:
    """Writes `num_pictures` training pictures and a few held-out ones, one block at a time."""
    sizes = {"train": num_pictures, "val": NUM_HELD_OUT, "test": NUM_HELD_OUT}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, num in sizes.items():
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (num, SIDE, SIDE, 3)}
                npy.write_array_header_1_0(file, header)
                for block in (iter_plain if plain and split == "train" else iter_pictures)(num):
                    file.write(block.tobytes())
            with archive.open(f"{split}_labels.npy", "w") as file:
                npy.write_array(file, (np.arange(num, dtype=np.uint8) % NUM_CLASSES).reshape(num, 1))


def write_rows(archive: Path, output: Path) -> None:
    """Writes the training pictures of an archive as rows for `data_builders.build rl`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    names = SETS["pathmnist"].names
    with np.load(archive) as file:
        pictures, labels = file["train_images"], file["train_labels"].reshape(-1)
    writer = None
    for start in range(0, len(pictures), FIELDS_A_BLOCK):
        rows = []
        for number in range(start, min(start + FIELDS_A_BLOCK, len(pictures))):
            buffer = BytesIO()
            Image.fromarray(pictures[number]).save(buffer, "PNG")
            rows.append(
                {
                    "data_source": "pathmnist",
                    "prompt": [{"role": "user", "content": f"<image>{SETS['pathmnist'].question}"}],
                    "images": [{"bytes": buffer.getvalue(), "path": None}],
                    "reward_model": {"ground_truth": names[labels[number]]},
                    "answer_kind": "text",
                }
            )
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(output, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def read_as_tower(directory: Path) -> int:
    """Decodes every picture of a set as `eval.tower` does, for its digest and for its features; returns the number."""
    from PIL import Image

    paths = sorted((directory / "images").rglob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            hashlib.sha256(f"{image.size}".encode() + image.convert("RGBA").tobytes()).hexdigest()
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB"))
    return len(paths)


def read_archive(path: Path) -> int:
    """Opens every picture of an archive as `eval.tower` does, for its digest and for its features."""
    from eval.tower.images import load_images

    images = load_images(str(path), test_frac=0.5, seed=0, limit=None, min_per_class=1).images
    for image in images:
        np.asarray(image.open())
    return len(images)


def timed(module: str, *words: str) -> dict[str, float]:
    """Runs a module in a process of its own and measures it.

    Raises:
        RuntimeError: where it fails.
    """
    command = [sys.executable, "-m", module, *words]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit status {process.returncode}: {errors[-2000:]}")
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "peak_memory_mib": round(watch.peak_bytes / 2**20, 1),
    }


def go(way: str, archive: Path, directory: Path) -> dict[str, Any]:
    """Takes one way from an archive to pictures that a tower has read."""
    steps: dict[str, dict[str, float]] = {}
    if way == "stream":
        words = ["medmnist", "--source", str(archive), "--balance", "false", "--output-dir", str(directory)]
    else:
        directory.mkdir()
        rows = directory / "rows.parquet"
        steps["rows"] = timed(SELF, "--step", "rows", "--paths", str(archive), str(rows))
        held_out = ["--validation_frac", "0", "--test_frac", "0", "--allow_missing_placeholders", "true"]
        words = ["rl", "--source", str(rows), *held_out, "--output-dir", str(directory / "set")]
        directory = directory / "set"
    steps["build"] = timed(BUILD, *words)
    steps["tower"] = timed(SELF, "--step", "tower", "--paths", str(directory / "data"))
    return {"seconds": round(sum(step["seconds"] for step in steps.values()), 2), "steps": steps}


def measure_memory(directory: Path, most: int) -> list[dict[str, Any]]:
    """Returns two rows per size of archive: time and peak memory of `stream`, and of `eval.tower` with the archive."""
    rows = []
    for num in sorted({max(1, most // 10), most}):
        archive = directory / str(num) / f"pathmnist_{SIDE}.npz"
        archive.parent.mkdir()
        write_archive(archive, num, plain=True)
        output = directory / f"memory-{num}"
        words = ["medmnist", "--source", str(archive), "--balance", "false", "--output-dir", str(output)]
        size = {"num_pictures": num, "pixels_gib": round(num * SIDE * SIDE * 3 / 2**30, 2)}
        rows.append({"way": "stream", **size, **timed(BUILD, *words)})
        rows.append({"way": "eval.tower", **size, **timed(SELF, "--step", "archive", "--paths", str(archive))})
        archive.unlink()
        for row in rows[-2:]:
            print(f"{row['way']}, {num} pictures: {row['peak_memory_mib']:.0f} MiB at the peak, {row['seconds']:.0f} s")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--num-pictures", type=int, default=2000, help="training pictures of the comparison")
    parser.add_argument("--num-rounds", type=int, default=3, help="number of times that each way is taken")
    parser.add_argument("--memory-pictures", type=int, default=100_000, help="largest archive of `memory`; 0: none")
    parser.add_argument("--step", choices=["rows", "tower", "archive"], help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.step == "rows":
        write_rows(*arguments.paths)
        return
    if arguments.step == "archive":
        print(*map(read_archive, arguments.paths))
        return
    if arguments.step == "tower":
        print(read_as_tower(*arguments.paths))
        return
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        archive = directory / f"pathmnist_{SIDE}.npz"
        write_archive(archive, arguments.num_pictures)
        compressed = archive.stat().st_size / (arguments.num_pictures * SIDE * SIDE * 3)
        for number in range(arguments.num_rounds):
            for way in WAYS:
                rounds[way].append(go(way, archive, directory / f"{way}-{number}"))
                print(f"{way}: {rounds[way][-1]['seconds']} s", flush=True)
        memory = measure_memory(directory, arguments.memory_pictures) if arguments.memory_pictures else []
    seconds = {way: float(np.median([row["seconds"] for row in rows])) for way, rows in rounds.items()}
    result = {
        "command": "python -m benchmarks.medmnist",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "num_pictures": arguments.num_pictures,
        "compressed_frac": round(compressed, 3),
        "bar": BAR,
        "times_faster": round(seconds["decode"] / seconds["stream"], 2),
        "seconds": seconds,
        "rounds": rounds,
        "memory": memory,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print(f"{result['times_faster']} times faster (bar {BAR:g}); written: {arguments.output}")
