"""Does a splice in memory give the same answers as the written one, and what do both cost?"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import RL, SFT, Shapes, peak_bytes, prepare, release_memory

NUM_NEW_TOKENS = 32


def answers(model: Path, output_dir: Path, work_dir: Path, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluates a model; returns the cost, and its replies by key."""
    from eval.run import main as evaluate

    release_memory()
    begin = time.perf_counter()
    evaluate(
        [
            *("--model", str(model), "--tasks", f"{work_dir / 'prompts'}:rl", "--output_dir", str(output_dir)),
            *("--batch_size", "8", "--dtype", "bfloat16", "--temperature", "1"),  # sampling shows small differences
            *("--max_new_tokens", str(min(NUM_NEW_TOKENS, 4 * shapes.reply_tokens))),
        ]
    )
    seconds = time.perf_counter() - begin
    records = [json.loads(line) for line in (output_dir / "records.jsonl").read_text().splitlines()]
    replies = {record["key"]: record["response"] for record in records}
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "num_replies": len(replies)}, replies


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `splice`."""
    import yaml

    from merge.splice import main as splice
    from merge.verify import main as verify

    figures.note(**prepare(work_dir, shapes))
    recipe = work_dir / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "donors": {SFT: str(work_dir / SFT), RL: str(work_dir / RL)},
                "blocks": {"early": SFT, "mid": {"start": SFT, "end": RL, "alpha": 0.5}, "late": RL},
                "rest": dict.fromkeys(("vision", "projector", "embed", "norm"), SFT),
                "files": SFT,
            }
        )
    )
    cost, in_memory = answers(recipe, work_dir / "eval-live", work_dir, shapes)
    figures.note(live=cost)
    begin = time.perf_counter()
    splice(["--recipe", str(recipe), "--output_dir", str(work_dir / "splice")])
    written = work_dir / "splice" / "checkpoint"
    gib = sum(file.stat().st_size for file in written.glob("*.safetensors")) / 2**30
    figures.note(splice_s=time.perf_counter() - begin, splice_gib=gib)
    begin = time.perf_counter()
    verify([str(work_dir / "splice")])
    figures.note(verify_s=time.perf_counter() - begin)
    cost, from_disk = answers(written, work_dir / "eval-written", work_dir, shapes)
    shutil.rmtree(written)  # frees disk space
    num_equal = sum(in_memory[key] == reply for key, reply in from_disk.items())
    figures.note(written=cost, num_equal_replies=num_equal, num_distinct_replies=len(set(from_disk.values())))
    if num_equal < len(from_disk):
        raise RuntimeError(f"{len(from_disk) - num_equal} of {len(from_disk)} replies of the live splice differ")
