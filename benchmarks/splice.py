"""What does a splice cost? Its time and memory, compared with copying the same bytes and with mergekit.

    python -m benchmarks.splice --mergekit-python PATH

Two synthetic bf16 checkpoints of Qwen2.5-VL-3B's widths, in the hub's spelling and three shards each, are spliced
in:rl:rl. The contenders take turns, in an order that shifts from round to round:

    splice      `python -m merge.splice`, from start to exit; it hashes every tensor and flushes to the disk itself
    copy        `cp` of as many bytes of the donors' files, then `sha256sum` of the copies, then `sync`
    mergekit    `mergekit-yaml`, passthrough of the same layers (mergekit lives in an environment of its own)

Before each, its earlier output is deleted, the disk is synchronised, and the page cache is dropped where this user may
(/proc/sys/vm/drop_caches), else filled with the donors; what still had to be flushed after a contender is timed apart,
as `sync_s`, and counts in the ratios `until_on_disk`. Ratios are taken within a round; their median stands with a 95 %
bootstrap interval. Memory is sampled every 5 ms: `peak_rss_mib` counts file mappings in, `peak_anonymous_mib` leaves
them out.

Writes `benchmarks/results/splice.json`, with all measurements, and whether mergekit's decoder tensors equal ours.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "splice.json"
SIZES_AT_4_GIB = {"num_layers": 16, "num_vision_blocks": 32, "vocabulary": 151_936}
"""Of Qwen2.5-VL-3B (36 layers, 32 blocks), with fewer layers; other sizes in proportion, the widths always its own."""
NUM_SHARDS = 3
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
SAMPLING_S = 0.005


@dataclass(frozen=True)
class Contender:
    """One way to get the splice's bytes."""

    name: str
    command: list[str]
    output: Path


def prepare(directory: Path, gib: float) -> None:
    """Writes the donors `in` and `rl`: random finite bf16 weights under true configurations, with a tokenizer."""
    import numpy as np
    import torch
    from transformers import GenerationConfig

    from models.layout import layout_of
    from models.pocket import PocketShape, build_config, build_tokenizer

    sizes = {name: max(3, round(size * gib / 4)) for name, size in SIZES_AT_4_GIB.items()}
    tokenizer = build_tokenizer()
    shape = PocketShape(
        num_layers=sizes["num_layers"], hidden_size=2048, mlp_size=11008, num_heads=16, num_kv_heads=2,
        num_vision_blocks=sizes["num_vision_blocks"], vision_hidden_size=1280, vision_mlp_size=3420,
    )  # fmt: skip
    config = build_config(shape, tokenizer)
    config.text_config.vocab_size = max(sizes["vocabulary"], len(tokenizer))
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.dtype = torch.bfloat16
    for seed, name in enumerate(("in", "rl")):
        donor = directory / name
        config.save_pretrained(donor)
        tokenizer.save_pretrained(donor)
        GenerationConfig(eos_token_id=config.text_config.eos_token_id).save_pretrained(donor)
        shapes = {_hub_name(parameter.name): parameter.shape for parameter in layout_of(donor)}
        _write_weights(donor, shapes, np.random.default_rng(seed))


def _hub_name(name: str) -> str:
    for prefix, spelling in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(prefix):
            return spelling + name.removeprefix(prefix)
    return name


def _write_weights(donor: Path, shapes: dict[str, tuple[int, ...]], generator: Any) -> None:
    import numpy as np

    from models.checkpoint import INDEX_FILE
    from models.shards import num_bytes, write_safetensors

    entries = [(name, "BF16", shape) for name, shape in shapes.items()]
    by_name = {entry[0]: entry for entry in entries}
    total = sum(map(num_bytes, entries))

    def weights(name: str) -> bytes:
        bits = np.frombuffer(generator.bytes(num_bytes(by_name[name])), dtype=np.uint16)
        return (bits & 0xBFFF).tobytes()  # without the highest bit of the exponent, every number is finite

    weight_map: dict[str, str] = {}
    position = 0
    for entry in entries:
        shard = min(position * NUM_SHARDS // total, NUM_SHARDS - 1) + 1
        weight_map[entry[0]] = f"model-{shard:05d}-of-{NUM_SHARDS:05d}.safetensors"
        position += num_bytes(entry)
    for file in sorted(set(weight_map.values())):
        write_safetensors(donor / file, [entry for entry in entries if weight_map[entry[0]] == file], weights)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (donor / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def make_contenders(directory: Path, mergekit_python: Path | None) -> list[Contender]:
    donors = {name: directory / name for name in ("in", "rl")}
    outputs = {name: directory / f"out-{name}" for name in ("splice", "copy", "mergekit")}
    splice = [
        sys.executable, "-m", "merge.splice", "--pattern", "in:rl:rl", "--donor", f"in={donors['in']}",
        "--donor", f"rl={donors['rl']}", "--rest", "in", "--output-dir", str(outputs["splice"]),
    ]  # fmt: skip
    shards = sorted(file.name for file in donors["in"].glob("*.safetensors"))
    sources = [str(donors["in"] / shards[0]), *(str(donors["rl"] / shard) for shard in shards[1:])]
    script = 'out=$1; shift; mkdir "$out" && cp "$@" "$out" && sha256sum "$out"/* > "$out/sums" && sync'
    contenders = [
        Contender("splice", splice, outputs["splice"]),
        Contender("copy", ["sh", "-c", script, "sh", str(outputs["copy"]), *sources], outputs["copy"]),
    ]
    if mergekit_python is not None:
        recipe = directory / "mergekit.yaml"
        write_mergekit_recipe(recipe, donors["in"], donors["rl"])
        merge = [str(mergekit_python), "-m", "mergekit.scripts.run_yaml", str(recipe), str(outputs["mergekit"])]
        contenders.append(Contender("mergekit", [*merge, "--quiet"], outputs["mergekit"]))
    return contenders


def write_mergekit_recipe(path: Path, sft: Path, rl: Path) -> None:
    """Writes in:rl:rl as mergekit has it for a model of several modules; `norm` and `head` follow its last slice."""
    import yaml

    num_layers = json.loads((sft / "config.json").read_text())["text_config"]["num_hidden_layers"]
    cuts = (0, num_layers // 3, 2 * num_layers // 3, num_layers)
    slices = [
        {"sources": [{"model": str(model), "layer_range": [first, last]}]}
        for model, first, last in zip((sft, rl, rl), cuts, cuts[1:], strict=False)
    ]
    rest = {"models": [{"model": str(sft)}]}
    modules = {"text_decoder": {"slices": slices}, "vision_tower": rest, "multi_modal_projector": rest}
    recipe = {"merge_method": "passthrough", "dtype": "bfloat16", "modules": modules}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def run_once(contender: Contender, directory: Path, *, drop: bool) -> dict[str, float]:
    """Runs a contender from the agreed state of disk and page cache, and measures it."""
    if contender.output.exists():
        shutil.rmtree(contender.output)
    os.sync()
    if drop:
        DROP_CACHES.write_text("3\n")
    else:
        for file in sorted(directory.glob("*/*.safetensors")):
            _read_through(file)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (directory / f"{contender.name}.log").open("w+") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(contender.command, cwd=REPOSITORY_ROOT, env=environment, stdout=log, stderr=log)
        memory = MemoryWatch(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks = memory.stop()
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{contender.name} failed with exit status {process.returncode}: {log.read()[-2000:]}")
    begin = time.perf_counter()
    os.sync()
    sync_s = time.perf_counter() - begin
    return {"seconds": seconds, "sync_s": sync_s, "cpu_s": usage.ru_utime + usage.ru_stime, **peaks}


def _read_through(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        buffer = bytearray(2**24)
        while stream.readinto(buffer):
            pass


class MemoryWatch:
    """Samples a process's memory until `stop` is called or the process ends."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._peaks = {"VmHWM": 0, "RssAnon": 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLING_S):
            try:
                lines = self._status.read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            for name, _, value in (line.partition(":") for line in lines):
                if name in self._peaks:
                    self._peaks[name] = max(self._peaks[name], int(value.split()[0]))

    def stop(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        return {
            "peak_rss_mib": round(self._peaks["VmHWM"] / 1024, 1),
            "peak_anonymous_mib": round(self._peaks["RssAnon"] / 1024, 1),
        }


def compare_decoders(ours: Path, theirs: Path) -> dict[str, Any]:
    """Compares two merged checkpoints tensor by tensor, byte by byte."""
    from models.checkpoint import open_checkpoint

    one, other = open_checkpoint(ours), open_checkpoint(theirs)
    decoder = [name for name in one.tensors if one.family.place(name)[0] == "llm"]
    rest = sorted({*one.tensors, *other.tensors} - set(decoder))
    return {
        "num_decoder_tensors": len(decoder),
        "num_decoder_tensors_equal": sum(
            name in other.tensors and one.data(name) == other.data(name) for name in decoder
        ),
        "num_other_tensors": len(rest),
        "other_tensors_that_differ": [
            name
            for name in rest
            if not (name in one.tensors and name in other.tensors and one.data(name) == other.data(name))
        ],
        "files_that_differ": sorted(
            file.name
            for file in ours.iterdir()
            if file.suffix in (".json", ".jinja")
            and (theirs / file.name).is_file()
            and (theirs / file.name).read_bytes() != file.read_bytes()
        ),
    }


def summarise(measured: dict[str, list[dict[str, float]]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns a row a contender, and the splice's ratios to the others."""
    import numpy as np

    from benchmarks.freeze_cost import ratio

    medians = {name: float(np.median([row["seconds"] for row in runs])) for name, runs in measured.items()}
    rows = [
        {
            "contender": name,
            "median_s": medians[name],
            "peak_rss_mib": max(row["peak_rss_mib"] for row in runs),
            "peak_anonymous_mib": max(row["peak_anonymous_mib"] for row in runs),
            "runs": runs,
        }
        for name, runs in measured.items()
    ]
    times: dict[str, Callable[[dict[str, float]], float]] = {
        "": lambda row: row["seconds"],
        "_until_on_disk": lambda row: row["seconds"] + row["sync_s"],
    }
    ratios = {
        f"splice_to_{name}{until}": ratio(list(map(time_of, measured["splice"])), list(map(time_of, runs)))
        for name, runs in measured.items()
        if name != "splice"
        for until, time_of in times.items()
    }
    return rows, ratios


def filesystem_of(directory: Path) -> str:
    """Returns the type of the file system a folder stands on, such as ext4."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [mount for mount in mounts if directory.resolve().is_relative_to(mount[1])]
    return max(inside, key=lambda mount: len(mount[1]))[2]


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepares the donors, lets the contenders take turns, checks their results and returns all that was found."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks.splice", "--prepare", str(directory), "--gib", str(arguments.gib)],
        cwd=REPOSITORY_ROOT, check=True,
    )  # fmt: skip
    contenders = make_contenders(directory, arguments.mergekit_python)
    drop = os.access(DROP_CACHES, os.W_OK)
    measured: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for round_number in range(arguments.rounds):
        shift = round_number % len(contenders)  # nobody always follows the same one
        for contender in contenders[shift:] + contenders[:shift]:
            row = run_once(contender, directory, drop=drop)
            measured[contender.name].append(row)
            print(f"round {round_number + 1}: {contender.name} {row['seconds']:.2f} s", flush=True)
    outputs = {contender.name: contender.output for contender in contenders}
    splice = outputs["splice"] / "checkpoint"
    subprocess.run([sys.executable, "-m", "merge.verify", str(outputs["splice"])], cwd=REPOSITORY_ROOT, check=True)
    rows, ratios = summarise(measured)
    return {
        "page_cache": "dropped before each run" if drop else "filled with the donors before each run",
        "filesystem": filesystem_of(directory),
        "gib": round(sum(file.stat().st_size for file in splice.glob("*.safetensors")) / 2**30, 3),
        "ratios": ratios,
        "rows": rows,
        "verified_by_merge_verify": True,
        "against_mergekit": (
            {"version": _mergekit_version(arguments.mergekit_python), **compare_decoders(splice, outputs["mergekit"])}
            if "mergekit" in outputs
            else "left out: no --mergekit-python"
        ),
    }


def _mergekit_version(python: Path) -> str:
    code = "import importlib.metadata; print(importlib.metadata.version('mergekit'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--gib", type=float, default=4.0, help="approximate size of each donor, in GiB")
    parser.add_argument("--rounds", type=int, default=7, help="number of runs of each contender")
    parser.add_argument("--work-dir", type=Path, help="a folder on the disk to measure; emptied at the end")
    parser.add_argument("--mergekit-python", type=Path, help="Python interpreter of an environment with mergekit")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; an interval needs at least 2")
    quiet_libraries()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.gib)
        return
    with tempfile.TemporaryDirectory(prefix="splice-benchmark-", dir=arguments.work_dir) as directory:
        found = measure(Path(directory), arguments)
    with_mergekit = " --mergekit-python PATH" if arguments.mergekit_python else ""
    result = {
        "command": f"python -m benchmarks.splice --gib {arguments.gib:g} --rounds {arguments.rounds}{with_mergekit}",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        **found,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        print(
            f"{row['contender']:<9} {row['median_s']:7.2f} s, peak memory {row['peak_rss_mib']:.0f} MiB, "
            f"{row['peak_anonymous_mib']:.0f} MiB of it anonymous"
        )
    for name, value in result["ratios"].items():
        print(f"{name.replace('_', ' ')}: {value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]")
    print(f"against mergekit: {result['against_mergekit']}")


if __name__ == "__main__":
    main()
