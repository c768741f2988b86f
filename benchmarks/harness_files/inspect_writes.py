"""Writes evaluation logs with inspect_ai: its mock model with the replies of the cases, two tasks, its own scorers.

    PYTHON inspect_writes.py CASES.json MODEL FOLDER

Runs with the interpreter of an environment that has inspect-ai, and imports nothing of this suite.
"""

import base64
import io
import json
import sys
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import write_eval_log
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import choice, match
from inspect_ai.solver import generate, multiple_choice
from PIL import Image


def picture(colour: list[int]) -> str:
    """Returns a picture as a data URI."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(colour)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def main() -> None:
    cases_file, name, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    cases = json.loads(cases_file.read_text())
    words = Task(
        name="own_words",
        dataset=MemoryDataset(
            [Sample(id=one["id"], input=one["question"], target=one["answer"]) for one in cases["words"]]
        ),
        solver=generate(),
        scorer=match(numeric=True),
    )
    shapes = Task(
        name="own_shapes",
        dataset=MemoryDataset(
            [
                Sample(
                    id=one["id"],
                    input=[
                        ChatMessageUser(
                            content=[
                                ContentText(text=one["question"]),
                                ContentImage(image=picture(cases["pictures"][one["picture"]])),
                            ]
                        )
                    ],
                    choices=one["options"],
                    target=one["answer"],
                    metadata={"category": one["category"]},
                )
                for one in cases["shapes"]
            ]
        ),
        solver=multiple_choice(),
        scorer=choice(),
    )
    for task, own in ((words, cases["words"]), (shapes, cases["shapes"])):
        replies = [ModelOutput.from_content(model=f"mockllm/{name}", content=one[name]) for one in own]
        for reply in replies:  # without a usage, the mock model fetches a tokenizer to count tokens
            reply.usage = ModelUsage(output_tokens=len(reply.completion.split()))
        replies[-1].choices[0].stop_reason = "max_tokens"
        model = get_model(f"mockllm/{name}", custom_outputs=replies, memoize=False)
        (log,) = eval(
            task, model=model, log_dir=str(folder / "logs"), log_format="eval", display="none", max_samples=1,
            max_connections=1,
            **GenerateConfig(max_tokens=64, temperature=0.0).model_dump(exclude_none=True),
        )  # fmt: skip
        if log.status != "success":
            raise RuntimeError(f"{task.name} ended with status {log.status}: {log.error}")
        for sample in log.samples:  # the course of the evaluation, ten times as large as the rest
            sample.events, sample.events_data = [], None
        log.eval.model_args = {}
        write_eval_log(log, str(folder / f"{name}_{task.name}.eval"))
        write_eval_log(log, str(folder / f"{name}_{task.name}.json"))


if __name__ == "__main__":
    main()
