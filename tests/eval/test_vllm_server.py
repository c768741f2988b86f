"""A judge and a describer behind vLLM's real server, started once, whose checkpoint asks for a repetition penalty."""

import json
import shutil
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval import run
from eval.judge.endpoint import Endpoint
from eval.judge.reply import RefusedError, UnusableReplyError
from eval.replies.generation import generate, greedy_settings, render_prompt
from eval.replies.subject import open_subject
from tracking.records import read_records

pytestmark = pytest.mark.vllm

CONTEXT = 2048
"""Of the served model (`conftest.py`)."""


def endpoint(url: str) -> Endpoint:
    return Endpoint(url=url, model="tiny", key_variable="NO_KEY", timeout_s=60, num_attempts=2)


def ask_plainly(url: str, question: str) -> str:
    """Returns a reply to a request that says nothing but the temperature."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 40}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["message"]["content"]
    return text


def test_replies_are_greedy_whatever_the_checkpoint_asks_for(
    vllm_server: str, served: Path, pocket_prompts: Path
) -> None:
    model, processor = open_subject(str(served)).load(dtype="float32", attn_implementation="sdpa")
    prompts = [prompt for prompt in read_prompts(pocket_prompts, "test") if not prompt.images][:12]
    texts = [render_prompt(processor, prompt, style="plain", system_prompt=None) for prompt in prompts]
    greedy = generate(model, processor, texts, [[] for _ in texts], greedy_settings(model, processor, 40))
    asked = endpoint(vllm_server)
    replies = [asked.ask([{"role": "user", "content": prompt.question}], max_tokens=40) for prompt in prompts]
    assert replies == [generation.response for generation in greedy]
    assert asked.settings["repetition_penalty"] == 1, "the server takes it"
    plain = [ask_plainly(vllm_server, prompt.question) for prompt in prompts]
    assert plain != replies, "the checkpoint's penalty counts where a request is silent"


def test_a_cut_reply_and_a_question_that_is_too_long_are_results_of_their_own(vllm_server: str) -> None:
    asked = endpoint(vllm_server)
    with pytest.raises(UnusableReplyError, match="a reply cut at its limit"):
        asked.ask(
            [{"role": "user", "content": "There are 2 red and 4 blue objects . What is red + blue ?"}], max_tokens=1
        )
    with pytest.raises(RefusedError, match=r"status 400: .*maximum context length"):
        asked.ask([{"role": "user", "content": "red " * 2 * CONTEXT}], max_tokens=4)
    assert asked.failures == 0


@pytest.mark.parametrize(("model", "said"), [("huge", "status 404; is there such a model"), ("tiny", None)])
def test_a_wrong_name_is_told_before_anything_is_written(
    model: str, said: str | None, vllm_server: str, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    """The judge is a pocket model, which says no verdict: that is counted, and is no failure."""
    prompts = [
        Prompt(id=f"o{number}", ability="reasoning", question=f"What is {number} ?", answer="∴ !", answer_kind="text")
        for number in range(4)
    ]
    write_prompts(tmp_path, "test", prompts)
    words = ["--model", str(pocket_checkpoint), "--tasks", f"{tmp_path}:test", "--output-dir", str(tmp_path / "out"),
             "--max-new-tokens", "4", "--judge-url", vllm_server, "--judge-model", model]  # fmt: skip
    if said is not None:
        with pytest.raises(ValueError, match=f"judge_url: .* for model 'huge': {said}"):
            run.main(words)
        assert not (tmp_path / "out").exists()
        return
    run.main(words)
    rules = {record["rule"].partition("; judge")[2] for record in read_records(tmp_path / "out" / "records.jsonl")}
    assert rules <= {"; no one-word verdict", "; a reply cut at its limit"} and rules
    noted = json.loads((tmp_path / "out" / "run.json").read_text())["attempts"][0]
    assert sum(noted["judge"]["undecided"].values()) == noted["judge"]["num_questions"] == 4


def test_pictures_are_described_as_the_checkpoint_itself_describes_them(
    vllm_server: str, served: Path, pocket_checkpoint: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    instruction = "How many objects are there ?"
    shown = [prompt for prompt in read_prompts(pocket_prompts, "test") if prompt.images][:10]
    shutil.copytree(pocket_prompts / "images", tmp_path / "images")
    write_prompts(tmp_path, "test", shown)
    common = ["--model", str(pocket_checkpoint), "--tasks", f"{tmp_path}:test", "--max-new-tokens", "4",
              "--conditions", "given", "described", "--describe-instruction", instruction]  # fmt: skip
    run.main([*common, "--output-dir", str(tmp_path / "by-server"), "--describe-url", vllm_server,
              "--describe-model", "tiny"])  # fmt: skip
    run.main([*common, "--output-dir", str(tmp_path / "by-checkpoint"), "--describe-model", str(served)])
    told = {
        name: {row["id"]: row["reply"] for row in read_lines(tmp_path / name / "descriptions.jsonl")}
        for name in ("by-server", "by-checkpoint")
    }
    assert len(told["by-server"]) == len({prompt.images for prompt in shown})
    assert told["by-server"] == told["by-checkpoint"]
    records = read_records(tmp_path / "by-server" / "records.jsonl")
    assert Counter(record["condition"] for record in records) == {"given": 10, "described": 10}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
