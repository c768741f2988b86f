"""Writes samples files with lm-evaluation-harness: one model that replays replies, two tasks, its own tracker.

    PYTHON lm_eval_writes.py CASES.json MODEL FOLDER

Runs with the interpreter of an environment that has lm-eval, and imports nothing of this suite.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

WORDS = """
task: own_words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/words.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false, temperature: 0.0, max_gen_toks: 64}
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: false,
     regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]}
metadata: {version: 1.0}
"""
"""Filters and metric are those of the harness's task gsm8k."""
SHAPES = """
task: own_shapes
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/shapes.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}\\nA. {{options[0]}}\\nB. {{options[1]}}\\nC. {{options[2]}}\\nD. {{options[3]}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 64}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}
metadata: {version: 1.0}
"""
LIKELIHOODS = """
task: own_likelihoods
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/shapes.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: "{{['A', 'B', 'C', 'D'].index(answer)}}"
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""


class Replaying(LM):
    """Replies to each question as the cases say."""

    tokenizer_name = "none"

    def __init__(self, replies: dict[str, str]) -> None:
        super().__init__()
        self._replies = replies

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [next(reply for asked, reply in self._replies.items() if asked in one.args[0]) for one in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-float(len(one.args[1])), False) for one in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no task of these files asks for it")


def main() -> None:
    cases_file, model, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    cases = json.loads(cases_file.read_text())
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    words = [{"id": one["id"], "question": one["question"], "answer": one["solution"]} for one in cases["words"]]
    shapes = [
        {"id": one["id"], "image": f"{one['picture']}.png", "question": f"{one['picture']}: {one['question']}",
         "options": one["options"], "answer": one["answer"]}
        for one in cases["shapes"]
    ]  # fmt: skip
    for name, rows in (("words", words), ("shapes", shapes)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for name, text in (("words", WORDS), ("shapes", SHAPES), ("likelihoods", LIKELIHOODS)):
        (tasks / f"own_{name}.yaml").write_text(text.replace("DATA", str(data)))
    replies = {one["question"]: one[model] for one in cases["words"]}
    replies |= {f"{one['picture']}: {one['question']}": one[model] for one in cases["shapes"]}
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    names = ["own_words", "own_shapes", "own_likelihoods"]
    tracker.general_config_tracker.log_experiment_args(
        model_source="replaying", model_args=f"pretrained={model}", system_instruction=None, chat_template=None,
        fewshot_as_multiturn=False,
    )  # fmt: skip
    results = simple_evaluate(
        model=Replaying(replies), tasks=names, num_fewshot=0, log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), evaluation_tracker=None,
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


if __name__ == "__main__":
    main()
