"""A prompt set as a task: `FOLDER:SPLIT`, under the name of its split (`data_builders/prompt_sets/prompts.py`)."""

from pathlib import Path

from data_builders.prompt_sets.prompts import prompts_fingerprint, read_prompts
from eval.tasks.benchmark import Task


def open_prompt_set(folder: str, split: str) -> Task:
    """Reads one split of a prompt set."""
    directory = Path(folder)
    prompts = read_prompts(directory, split)
    return Task(
        name=split,
        prompts=prompts,
        directory=directory,
        fingerprint=prompts_fingerprint(directory, split),
        facts={"source": f"{folder}:{split}", "num_prompts": len(prompts)},
    )
