"""What does reading the maps of `analyze.look` cost? Beside a plain forward pass, and eager attention's matrices.

    python -m benchmarks.look

Each case is read in four ways, in turn, on the same model and prompts:

    plain   a forward pass with SDPA that gives the logits of the replies, and nothing else
    look    the maps as `analyze.look` reads them: small prompts in batches; a long prompt and its pictures once for all
            replies to it
    single  the same maps, one reply at a time, the pictures every time
    eager   eager attention with `output_attentions`, from whose matrices the same maps are taken

`plain` and `eager` take one reply at a time, too. `large picture` is a random Qwen2.5-VL with 1,024 picture tokens and
three replies to one prompt, such as those of `--authors base sft rl`. `analyze.look` reads two by default; the more
replies it reads, the more the shared prompt saves. `pocket` is a pocket model with a reply to each of 100 prompts.
Times are CPU seconds of the forward passes and of what is taken from them; tokenising is left out. Ratios are taken
within a round; their median is given with a 95 % bootstrap interval. `added` is what the maps of `single` and `eager`
cost beyond the plain pass. As `eager` also computes all that a plain pass does, a way that runs every plain pass can be
faster than it by `eager / plain` at most; `look` is faster than that only where it reads a prompt once for several
replies.

Peak memory is that of a process of its own that reads the case once: the peak, and how far it is above the memory after
loading (Linux). Before the rounds, the maps of both ways are compared.

Writes `benchmarks/results/look.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.freeze_cost import ratio
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "look.json"
LARGE, POCKET = "large picture", "pocket"
PLAIN, LOOK, SINGLE, EAGER = WAYS = "plain", "look", "single", "eager"
NUM_ROUNDS = {LARGE: 3, POCKET: 5}
PICTURE_CELLS = (32, 32)
NUM_PROMPTS = 100
MAX_TOKENS = 16
QUESTION = "How many red objects are there ?"
LARGE_REPLIES = (
    f"<think>{' '.join(['red red and 1 + 1 = 2'] * 6)}</think><answer>it is 2</answer>",
    f"<think>{' '.join(['blue 1 and red 1 = 2'] * 6)}</think><answer>it is 3</answer>",
    f"<think>{' '.join(['1 red and 1 blue = 1'] * 6)}</think><answer>it is 1</answer>",
)
POCKET_REPLY = "<think>red red and 1 + 1 = 2</think><answer>2</answer>"
MAX_PEAK_RATIO, MIN_SPEEDUP, MAX_DIFFERENCE = 1.2, 5.0, 1e-5
"""The bars: peak memory against a plain pass, speed against eager attention, largest difference of a mass."""


class Case:
    """A model with the prompts and replies that it reads."""

    def __init__(self, name: str, folder: Path) -> None:
        import torch

        self.name = name
        self.model, self.processor = _large() if name == LARGE else _pocket(folder)
        self.model.eval()
        from models.blocks import make_partition

        self.partition = make_partition(self.model.config.get_text_config().num_hidden_layers)
        self.rows = _rows(self.model, self.processor, name, folder)
        torch.manual_seed(0)

    def plain(self) -> None:
        """Reads every reply with SDPA, without maps."""
        import torch

        from analyze.attention.replies import REPLY, make_inputs

        self.model.set_attn_implementation("sdpa")
        for one in self.rows:
            inputs, segments, _ = make_inputs([one.row], self.model, pad_id=0)
            before = (segments[0] == REPLY).nonzero()[:, 0] - 1
            with torch.inference_mode():
                self.model(**inputs, use_cache=False, logits_to_keep=before)

    def look(self) -> list[Any]:
        """Returns the maps of the parts of every reply, [layers, parts, cells], as `analyze.look` reads them."""
        from analyze.look.branches import can_branch
        from analyze.look.run import batches, read_batch, remembering_pictures

        self.model.set_attn_implementation("sdpa")
        maps = []
        with remembering_pictures(self.model):
            for batch in batches(iter(self.rows), branching=can_branch(self.model)):
                found = read_batch(self.model, self.processor, batch, self.partition, max_tokens=MAX_TOKENS)
                maps += [fields["parts"] for fields in found]
        return maps

    def single(self) -> list[Any]:
        """Returns the same maps, read one reply at a time."""
        from analyze.look.run import read_batch

        self.model.set_attn_implementation("sdpa")
        maps = []
        for one in self.rows:
            maps += read_batch(self.model, self.processor, [one], self.partition, max_tokens=MAX_TOKENS)
        return [fields["parts"] for fields in maps]

    def eager(self) -> list[Any]:
        """Returns the same maps from the matrices of eager attention, in the decoder and in the tower."""
        import torch

        from analyze.attention.replies import REPLY, VISION, make_inputs

        self.model.set_attn_implementation("eager")
        maps = []
        for one in self.rows:
            inputs, segments, weights = make_inputs([one.row], self.model, pad_id=0)
            reply, cells = ((segments[0] == part).nonzero()[:, 0] for part in (REPLY, VISION))
            with torch.inference_mode():
                matrices = self.model(
                    **inputs, use_cache=False, logits_to_keep=reply - 1, output_attentions=True
                ).attentions
            parts = weights[0][:, reply]
            maps.append(torch.stack([parts @ matrix[0][:, reply][..., cells].mean(0) for matrix in matrices]).numpy())
        return maps

    def way(self, name: str) -> Callable[[], Any]:
        return {PLAIN: self.plain, LOOK: self.look, SINGLE: self.single, EAGER: self.eager}[name]


def _large() -> tuple[Any, Any]:
    from benchmarks.shared_prompts import Case as Shape
    from benchmarks.shared_prompts import make_model

    return make_model(Shape(name=LARGE, picture_cells=PICTURE_CELLS, num_rounds=0))


def _pocket(folder: Path) -> tuple[Any, Any]:
    from models.loading import load_model, load_processor
    from models.pocket import PocketShape, write_pocket_checkpoint

    checkpoint = folder / "pocket"
    if not checkpoint.exists():
        write_pocket_checkpoint(checkpoint, shape=PocketShape(), seed=0)
    return load_model(checkpoint, dtype="float32", attn_implementation="sdpa"), load_processor(checkpoint)


def _rows(model: Any, processor: Any, name: str, folder: Path) -> list[Any]:
    """Returns the case's prompts and replies, tokenised."""
    import random

    import numpy as np
    from PIL import Image

    from analyze.attention.replies import read_reply_of
    from analyze.look.grids import picture_cells
    from analyze.look.plan import Look
    from analyze.look.run import Prepared
    from analyze.probes.inputs import Problem
    from benchmarks.shared_prompts import CELL
    from data_builders.pocket.draw import draw_scene, render
    from data_builders.prompt_sets.prompts import Prompt
    from eval.replies.generation import render_prompt

    drawn = random.Random(0)
    rows = []
    for number in range(1 if name == LARGE else NUM_PROMPTS):
        width, height = (cells * CELL for cells in PICTURE_CELLS)
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise) if name == LARGE else render(draw_scene(drawn))
        path = folder / f"{number}.png"
        image.save(path)
        prompt = Prompt(
            id=str(number), ability="vision", question=QUESTION, answer="2", answer_kind="number", images=(path.name,)
        )
        text = render_prompt(processor, prompt, style="think", system_prompt=None)
        for reply in LARGE_REPLIES if name == LARGE else (POCKET_REPLY,):
            row = read_reply_of(model, processor, text=text, question=QUESTION, image_paths=[path], reply=reply)
            assert row is not None
            problem = Problem(task=name, directory=folder, prompt=prompt)
            look = Look(problem=problem, author="benchmark", reply=reply, statuses={})
            rows.append(Prepared(look=look, row=row, cells=picture_cells(model, processor, row, [image.size])))
    return rows


def compare(case: Case, num_rounds: int) -> dict[str, Any]:
    """Reads a case in all ways in turn."""
    import numpy as np
    import torch

    ours, theirs = case.look(), case.eager()
    difference = max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))
    case.plain()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(num_rounds):
        for way in WAYS[number % 4 :] + WAYS[: number % 4]:
            begin = time.process_time()
            case.way(way)()
            times[way].append(time.process_time() - begin)
    tokens = [len(one.row.input_ids) for one in case.rows]
    return {
        "case": case.name,
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_threads": torch.get_num_threads(),
        "num_replies": len(case.rows),
        "num_picture_tokens": case.rows[0].row.num_vision_tokens,
        "num_tokens": float(np.median(tokens)),
        "num_rounds": num_rounds,
        "seconds": {way: float(np.median(own)) for way, own in times.items()},
        "look_to_plain": ratio(times[LOOK], times[PLAIN]),
        "eager_to_plain": ratio(times[EAGER], times[PLAIN]),
        "eager_to_look": ratio(times[EAGER], times[LOOK]),
        "added_s": {way: float(np.median(np.array(times[way]) - np.array(times[PLAIN]))) for way in (SINGLE, EAGER)},
        "largest_mass_difference": difference,
    }


def peak_of(name: str, way: str) -> dict[str, float]:
    """Returns the peak memory in MiB of a process that reads a case once, and what it had after loading."""
    command = [sys.executable, "-m", "benchmarks.look", "--case", name, "--worker", way]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, {way}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    loaded, peak = map(float, done.stdout.splitlines()[-1].split())
    return {"loaded_mib": loaded, "peak_mib": peak, "above_loaded_mib": peak - loaded}


def memory() -> tuple[float, float]:
    """Returns the present memory of this process and its peak, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    present, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return present, peak


def read_once(name: str, way: str, folder: Path) -> tuple[float, float]:
    """Reads a case once in this process and returns the memory after loading, and the peak after it, in MiB."""
    import ctypes
    import gc

    case = Case(name, folder)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    loaded, _ = memory()
    case.way(way)()
    return loaded, memory()[1]


def format_row(row: dict[str, Any]) -> str:
    def said(name: str) -> str:
        found = row[name]
        return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"

    seconds, added = row["seconds"], row["added_s"]
    return (
        f"{row['case']}, {row['num_replies']} replies, {row['num_picture_tokens']} picture tokens: plain "
        f"{seconds[PLAIN]:.2f} s, look {seconds[LOOK]:.2f} s, eager {seconds[EAGER]:.2f} s; eager / look "
        f"{said('eager_to_look')}, look / plain {said('look_to_plain')}, eager / plain {said('eager_to_plain')}; "
        f"added: single {added[SINGLE]:.2f} s, eager {added[EAGER]:.2f} s; masses differ by at most "
        f"{row['largest_mass_difference']:.1e}"
    )


def judge(rows: Sequence[dict[str, Any]], peaks: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, bool]]:
    """Returns which bars each case meets."""
    met = {}
    for row in rows:
        own = peaks[row["case"]]
        met[row["case"]] = {
            f"peak memory at most {MAX_PEAK_RATIO} times a plain pass": (
                own[LOOK]["peak_mib"] <= MAX_PEAK_RATIO * own[PLAIN]["peak_mib"]
            ),
            f"at least {MIN_SPEEDUP:g} times as fast as eager": row["eager_to_look"]["median"] >= MIN_SPEEDUP,
            f"maps add at most 1/{MIN_SPEEDUP:g} of what eager's add": (
                MIN_SPEEDUP * row["added_s"][SINGLE] <= row["added_s"][EAGER]
            ),
            f"masses equal to eager's to {MAX_DIFFERENCE:g}": row["largest_mass_difference"] <= MAX_DIFFERENCE,
        }
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--case", choices=[LARGE, POCKET], help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        if arguments.worker:
            print(*read_once(arguments.case, arguments.worker, Path(directory)))
            return
        rows = []
        for name in (LARGE, POCKET):
            rows.append(compare(Case(name, Path(directory)), NUM_ROUNDS[name]))
            print(format_row(rows[-1]), flush=True)
    peaks = {name: {way: peak_of(name, way) for way in (PLAIN, LOOK, EAGER)} for name in (LARGE, POCKET)}
    for name, own in peaks.items():
        said = ", ".join(f"{way} {own[way]['peak_mib']:.0f} ({own[way]['above_loaded_mib']:.0f})" for way in own)
        print(f"{name}: peak memory in MiB, in brackets above the loaded model: {said}")
    bars = judge(rows, peaks)
    for name, met in bars.items():
        for bar, holds in met.items():
            print(f"{name}: {bar}: {'yes' if holds else 'no'}")
    result = {
        "command": "python -m benchmarks.look",
        "hardware": hardware(),
        "rows": rows,
        "peak_memory": peaks,
        "bars": bars,
    }
    write_text(arguments.result, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
