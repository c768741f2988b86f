"""Which models differ, and on which prompts? One self-contained page: answers, tables, and prompts with both replies.

Of each comparison and kind of flip at most `NUM_SHOWN` prompts are shown, spread evenly over all that flipped;
`transitions.csv` lists them all. Questions and pictures are shown where the prompts still exist unchanged.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.prompts import Prompt
from eval.compare.scope import about, corrections, covers, is_significant, row_about, verdict, with_num_tests
from eval.compare.sentences import answers, could_find, describe_figure, draw_differences, with_labels
from eval.compare.transitions import FLIPS
from eval.display.formatting import interval, points, probability
from eval.display.page import page_environment
from eval.replies.outcomes import CONDITIONS, GIVEN
from eval.statistics.pairing import FLIPPING_METRICS, label
from eval.tasks import Task, open_task
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "comparison.html.j2"
NUM_SHOWN = 20
PICTURE_PIXELS = 160
"""Longest side of a picture on the page."""
NUM_PICTURES = 4
REPLY_CHARS = 1600
"""Of longer replies the middle is left out."""
TASK_CACHE = Path("outputs/tasks")
"""Where the pictures of benchmarks are stored where the evaluation does not say."""


@dataclass(frozen=True)
class Tasks:
    """The prompts of an evaluation, where they still exist."""

    found: dict[str, Task]
    missing: dict[str, str]
    """Task -> why its prompts are not shown."""


def find_tasks(run: Mapping[str, Any], given: Sequence[str] = ()) -> Tasks:
    """Finds the prompts that an evaluation was run on.

    Args:
        run: the evaluation's `run.json`, whose attempts note under `tasks` how each task was named, and under
            `task_cache` where the pictures of benchmarks are stored.
        given: tasks that have moved since, as `eval.tasks` names them.

    Raises:
        ValueError: where a given task is not one of the evaluation's, or its prompts are not the same.
    """
    expected: dict[str, str] = run["settings"]["tasks"]
    noted: dict[str, str] = {}
    cache_dir = TASK_CACHE
    for attempt in run["attempts"]:
        noted |= attempt.get("tasks", {})
        cache_dir = Path(attempt.get("task_cache", cache_dir))
    found, missing = {}, {}
    for text in given:
        task = open_task(text, cache_dir=cache_dir)
        if task.name not in expected:
            raise ValueError(f"--tasks {text}: the evaluations have no such task, only {', '.join(expected)}")
        if task.fingerprint != expected[task.name]:
            raise ValueError(f"--tasks {text}: these are not the prompts that were evaluated; name those")
        found[task.name] = task
    for name in [name for name in expected if name not in found]:
        if name not in noted:
            missing[name] = "the evaluation does not say where they are"
            continue
        try:
            task = open_task(noted[name], cache_dir=cache_dir)
        except ValueError as error:
            missing[name] = str(error)
            continue
        if task.fingerprint == expected[name]:
            found[name] = task
        else:
            missing[name] = f"{noted[name]} has changed since"
    return Tasks(found, missing)


def render(
    differences: "pd.DataFrame",
    transitions: "pd.DataFrame",
    records: Mapping[str, Sequence[Record]],
    tasks: Tasks,
    *,
    doubts: Sequence[str] = (),
) -> str:
    """Returns the page as HTML.

    Args:
        doubts: reasons to doubt the comparison, a sentence each.
    """
    template = page_environment(TEMPLATES).get_template(PAGE)
    pictures = _Pictures()
    cards = _Cards(records, tasks, pictures)
    sections = [
        {"arm": arm, "against": against, "number": number, "blocks": cards.blocks(own)}
        for number, ((arm, against), own) in enumerate(transitions.groupby(["arm", "against"], sort=False))
    ]
    pooled = with_num_tests(differences[differences["seed"].astype(str) == "pooled"])
    counts = count_rows(differences[differences["metric"].isin(FLIPPING_METRICS)])
    return template.render(
        sections=sections,
        found=[_found(own, str(against)) for against, own in with_labels(pooled).groupby("against", sort=False)],
        metrics=[
            {
                "name": metric,
                "rows": difference_rows(pooled[pooled["metric"] == metric]),
                "opened": metric in FLIPPING_METRICS,
                "corrections": corrections(pooled[pooled["metric"] == metric]),
            }
            for metric in dict.fromkeys(pooled["metric"])
        ],
        covers=covers(pooled.loc[pooled["n"] > 0, "scope"]),
        counts=counts,
        several_metrics=len({row["metric"] for row in counts}) > 1,
        pictures=pictures.css,
        missing=tasks.missing,
        models=list(records),
        num_shown=NUM_SHOWN,
        several_tasks=differences["task"].nunique() > 1,
        doubts=doubts,
    )


def _found(rows: "pd.DataFrame", against: str) -> dict[str, Any]:
    """Returns what was found of all models compared with one: sentences, and a figure a metric."""
    return {
        "against": against,
        "about": about(rows["scope"]),
        "answers": answers(rows, against),
        "could_find": could_find(rows, against),
        "figures": [
            {"drawing": draw_differences(own, against), "caption": describe_figure(own, against)}
            for _, own in rows.groupby("metric", sort=False)
        ],
    }


def difference_rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns the pooled rows of one metric as text, each with its verdict."""
    rows = []
    for row in table.to_dict("records"):
        significant = is_significant(row)
        if not row["n"]:
            said = "nothing to compare"
        elif significant:
            said = "better" if row["difference"] > 0 else "worse"
        else:
            said = verdict(row)
        rows.append(
            {name: row[name] for name in ("task", "ability", "arm", "against")}
            | {
                "n": int(row["n"]),
                "difference": points(row["difference"]),
                "interval": interval(row["low"], row["high"]),
                "p_holm": probability(row["p_holm"]),
                "detectable": points(row["detectable"], sign=False),
                "verdict": said,
                "about": row_about(row) if row["n"] else "",
                "significant": significant,
            }
        )
    return rows


def count_rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns a row per comparison and seed with its transition counts."""
    own = table[(table["seed"].astype(str) != "pooled") & (table["n"] > 0)]
    rows = []
    for row in own.to_dict("records"):
        rows.append(
            {name: row[name] for name in ("task", "ability", "metric", "arm", "against")}
            | {name: int(row[name]) for name in ("n", "num_gained", "num_lost", "num_both_right", "num_both_wrong")}
            | {"seed": str(row["seed"])}
        )
    return rows


def spread(items: Sequence[Any], num_shown: int) -> list[Any]:
    """Returns at most so many items, evenly spread over all."""
    if len(items) <= num_shown:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, num_shown).round().astype(int)]


def shorten(reply: str) -> str:
    """Returns a reply without its middle where it is long."""
    if len(reply) <= REPLY_CHARS:
        return reply
    head, tail = REPLY_CHARS // 4, REPLY_CHARS - REPLY_CHARS // 4
    return f"{reply[:head]}\n[… {len(reply) - head - tail:,} characters left out …]\n{reply[-tail:]}"


class _Cards:
    """Turns flips into what the page shows of them."""

    def __init__(self, records: Mapping[str, Sequence[Record]], tasks: Tasks, pictures: "_Pictures") -> None:
        self._replies = {
            name: {
                (record["task"], record["id"], record.get("condition", GIVEN), record.get("sample", 0)): record
                for record in own
            }
            for name, own in records.items()
        }
        self._prompts = {
            (name, prompt.id): (task.directory, prompt) for name, task in tasks.found.items() for prompt in task.prompts
        }
        self._pictures = pictures

    def blocks(self, flips: "pd.DataFrame") -> list[dict[str, Any]]:
        """Returns a block per task, ability and kind of one pair of models, with its cards."""
        blocks = []
        for _, own in flips.groupby(["task", "ability", "kind"], sort=False):
            metrics: dict[tuple[str, str], list[str]] = {}
            for prompt_id, seed, metric in zip(own["id"], own["seed"], own["metric"], strict=True):
                metrics.setdefault((prompt_id, seed), []).append(metric)
            found = sorted(metrics)
            first = own.iloc[0]
            task, kind = first["task"], first["kind"]
            shown = [
                self._card(task, prompt_id, seed, kind, first["arm"], first["against"], metrics[prompt_id, seed])
                for prompt_id, seed in spread(found, NUM_SHOWN)
            ]
            blocks.append(
                {"task": task, "ability": first["ability"], "kind": kind, "num_flips": len(found), "cards": shown}
                | {"css": "gained" if kind == FLIPS[1] else "lost"}
            )
        return blocks

    def _card(
        self, task: str, prompt_id: str, seed: str, kind: str, arm: str, against: str, metrics: list[str]
    ) -> dict[str, Any]:
        before, after = (status == "right" for status in kind.split("->"))
        sides = [
            self._side(task, prompt_id, against, seed, right=before),
            self._side(task, prompt_id, arm, seed, right=after),
        ]
        found = self._prompts.get((task, prompt_id))
        return {
            "id": prompt_id,
            "seed": seed,
            "metrics": metrics,
            "sides": sides,
            "gold": sides[0]["gold"],
            "question": "" if found is None else _question(found[1]),
            "pictures": [] if found is None else self._pictures.of(found[0], found[1]),
        }

    def _side(self, task: str, prompt_id: str, name: str, seed: str, *, right: bool) -> dict[str, Any]:
        """Returns one model's replies to a prompt: of several samples the first that is as the flip says."""
        model = label(name, int(seed)) if seed and name not in self._replies else name
        replies = self._replies[model]
        samples: list[Record] = []
        while (task, prompt_id, GIVEN, len(samples)) in replies:
            samples.append(replies[task, prompt_id, GIVEN, len(samples)])
        rights = [reply["status"] == "correct" for reply in samples]
        sample = rights.index(right) if right in rights else 0
        shown = [(condition, replies.get((task, prompt_id, condition, sample))) for condition in CONDITIONS]
        return {
            "model": model,
            "gold": samples[sample].get("gold", ""),
            "num_right": sum(rights),
            "num_samples": len(rights),
            "replies": [
                {
                    "condition": condition,
                    "status": reply["status"],
                    "extracted": reply.get("extracted"),
                    "text": shorten(reply.get("response", "")),
                }
                for condition, reply in shown
                if reply is not None
            ],
        }


class _Pictures:
    """Small copies of pictures, each stored once in the page."""

    def __init__(self) -> None:
        self._classes: dict[Path, str] = {}
        self.css: list[str] = []

    def of(self, folder: Path, prompt: Prompt) -> list[str]:
        """Returns the style classes of a prompt's pictures."""
        return [self._class(folder / image) for image in prompt.images[:NUM_PICTURES]]

    def _class(self, path: Path) -> str:
        if path not in self._classes:
            name = self._classes[path] = f"i{len(self._classes)}"
            data, (width, height) = thumbnail(path)
            self.css.append(f".{name}{{width:{width}px;height:{height}px;background-image:url({data})}}")
        return self._classes[path]


def thumbnail(path: Path) -> tuple[str, tuple[int, int]]:
    """Returns a small copy of a picture as a data URI, and the size at which it is shown."""
    from PIL import Image

    with Image.open(path) as file:
        picture = eight_bits(file).convert("RGB")
    kind = "PNG" if max(picture.size) <= PICTURE_PIXELS else "JPEG"
    scale = PICTURE_PIXELS / max(picture.size)
    shown = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}", shown


def _question(prompt: Prompt) -> str:
    options = [f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(prompt.choices)]
    return "\n".join([prompt.question, *options])
