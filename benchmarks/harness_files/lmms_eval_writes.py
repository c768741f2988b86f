"""Writes samples files with lmms-eval: one model that replays replies, two tasks, its own tracker.

    PYTHON lmms_eval_writes.py CASES.json MODEL FOLDER

Runs with the interpreter of an environment that has lmms-eval, and imports nothing of this suite.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager
from PIL import Image

WORDS = """
task: own_words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/words.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.no_visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 64, temperature: 0, do_sample: false, until: ["\\n\\n"]}
filter_list:
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(-?[0-9.,]*[0-9])"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}
metadata: [{version: 0.0}]
"""
SHAPES = """
task: own_shapes
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/shapes.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs: {max_new_tokens: 64, temperature: 0, do_sample: false}
metric_list:
  - {metric: own_acc, aggregation: !function utils.aggregate, higher_is_better: true}
metadata: [{version: 0.0}]
"""
UTILS = """
from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from PIL import Image


def no_visual(doc):
    return []


def visual(doc):
    return [Image.open(doc["image_path"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    options = "\\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", doc["options"]))
    return f"{doc['question']}\\n{options}\\nAnswer with the option's letter from the given choices directly."


def process_results(doc, results):
    letter = extract_mcq_answer(results[0], choices=["A", "B", "C", "D"])
    score = float(letter == doc["answer"])
    return {"own_acc": {"question_id": doc["id"], "category": doc["category"], "prediction": letter, "score": score}}


def aggregate(results):
    return sum(one["score"] for one in results) / len(results)
"""
"""The tasks' functions; answers are read with lmms-eval's own reader of options."""


class Replaying(lmms):
    """Replies to each question as the cases say."""

    def __init__(self, replies: dict[str, dict[str, str]]) -> None:
        super().__init__()
        self._replies = replies

    def generate_until(self, requests: list[Any]) -> list[str]:
        found = []
        for _, _, _, doc_id, task, split in [one.args for one in requests]:
            found.append(self._replies[task][self.task_dict[task][split][doc_id]["id"]])
        return found

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("no task of these files asks for it")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("no task of these files asks for it")


def main() -> None:
    cases_file, model, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    cases = json.loads(cases_file.read_text())
    data, tasks = folder / "data", folder / "tasks"
    for place in (data, tasks):
        place.mkdir(parents=True, exist_ok=True)
    for name, colour in cases["pictures"].items():
        Image.new("RGB", (28, 28), tuple(colour)).save(data / f"{name}.png")
    rows = {
        "words": [
            {"id": one["id"], "question": one["question"], "answer": one["answer"]} for one in cases["words"]
        ],
        "shapes": [
            {"id": one["id"], "image_path": str(data / f"{one['picture']}.png"), "question": one["question"],
             "options": one["options"], "answer": one["answer"], "category": one["category"]}
            for one in cases["shapes"]
        ],
    }  # fmt: skip
    for name, text in (("words", WORDS), ("shapes", SHAPES)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (tasks / f"own_{name}.yaml").write_text(text.replace("DATA", str(data)))
    (tasks / "utils.py").write_text(UTILS)
    replies = {f"own_{name}": {one["id"]: one[model] for one in cases[name]} for name in rows}
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    results = simple_evaluate(
        model=Replaying(replies), model_args=f"pretrained={model}", tasks=list(replies), batch_size=1,
        log_samples=True, bootstrap_iters=0, evaluation_tracker=tracker,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), datetime_str="20260101_000000",
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str="20260101_000000")
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


if __name__ == "__main__":
    main()
