"""What do a prompt's images show, in words? Descriptions read from a file, or generated once by a model and cached.

    --descriptions FILE.jsonl                                              lines of `id` and `description`
    --describe-url http://localhost:8000/v1 --describe-model NAME          an endpoint that takes images
    --describe-model CHECKPOINT                                            a checkpoint, loaded for this and freed

Vision-to-reasoning asks a question again with a black image and such a description. The describing model never sees the
question, so the description contains the answer only if the image does. Generated descriptions are cached in
`descriptions.jsonl`, keyed by a hash of the images, the model and the instruction.

Each set of images is described once per run. If the endpoint fails, the command ends with exit status 1 before the
model is loaded; running it again requests only the missing descriptions. If an image is refused, or the reply is
truncated or empty, there is no description: the prompt is not asked under `described`, and is counted.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_builders.prompt_sets.depth import eight_bits, is_deep
from data_builders.prompt_sets.prompts import Prompt
from eval.judge.asking import MAX_AT_ONCE, Calls, count_reasons
from eval.judge.cache import ReplyCache, content_hash
from eval.judge.endpoint import Endpoint, Messages, check_url
from eval.judge.reply import CUT_IN_THOUGHTS, EndpointError, UnansweredError, without_thoughts
from tracking.progress import progress

if TYPE_CHECKING:
    from eval.replies.generation import Generation
    from eval.replies.subject import Subject

DESCRIPTIONS_FILE = "descriptions.jsonl"
INSTRUCTION = (
    "Describe the image for a reader who cannot see it: every object, its colour, shape, number and place, every word, "
    "number and label, and how the parts relate to each other. Do not draw conclusions."
)
SENT_AS_IS = {"PNG": "image/png", "JPEG": "image/jpeg"}
"""Formats that every endpoint accepts; others are sent as PNG, and pictures of 16 bits as PNG of 8."""
CHECK_PIXELS = 56
"""Side length of the image with which an endpoint is tested."""
LIMIT_HINT = "; --describe-max-tokens raises the limit"


@dataclass(frozen=True, kw_only=True)
class DescriptionArguments:
    """Where descriptions of images come from."""

    descriptions: str | None = field(
        default=None, metadata={"help": "JSONL file of descriptions, with id and description on each line"}
    )
    describe_model: str | None = field(
        default=None,
        metadata={
            "help": "model that writes descriptions: a checkpoint, or with --describe-url the name of a model at that "
            "endpoint"
        },
    )
    describe_url: str | None = field(
        default=None,
        metadata={"help": "an OpenAI-compatible endpoint that takes images, such as http://localhost:8000/v1"},
    )
    describe_instruction: str = field(default=INSTRUCTION, metadata={"help": "instruction to the describing model"})
    describe_max_tokens: int = field(default=1024, metadata={"help": "maximum length of a description, in tokens"})
    describe_batch_size: int = field(default=8, metadata={"help": "images per batch, if a checkpoint describes them"})
    describe_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "environment variable that holds the endpoint's key"}
    )
    describe_timeout_s: float = field(default=120.0, metadata={"help": "time limit of one attempt, in seconds"})
    describe_attempts: int = field(default=4, metadata={"help": "attempts per image"})

    def __post_init__(self) -> None:
        if self.descriptions is not None and (self.describe_model or self.describe_url):
            raise ValueError("descriptions come from a file or from a model; name one of them")
        if self.describe_url is not None:
            check_url(self.describe_url)
            if self.describe_model is None:
                raise ValueError("describe_url needs describe_model: the model's name there")
        for name in ("describe_max_tokens", "describe_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Descriptions(Protocol):
    """A source of descriptions of prompts' images."""

    @property
    def source(self) -> Mapping[str, Any]:
        """What determines the descriptions, for a run's settings."""

    def check(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """Tests the describing model before long work begins, if descriptions are missing.

        Raises:
            ValueError: if it does not answer.
        """

    def prepare(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """Fetches the descriptions of many prompts together, if that is faster.

        Raises:
            RuntimeError: if an endpoint failed, with the number of failures and the reasons.
        """

    @property
    def undescribed(self) -> Counter[str]:
        """Reason for a missing description -> number of image sets."""

    def __call__(self, prompt: Prompt, directory: Path) -> str | None:
        """Returns the description of a prompt's images, or None if there is none."""


def open_descriptions(arguments: DescriptionArguments, directory: Path) -> Descriptions | None:
    """Returns the configured source of descriptions, cached in `descriptions.jsonl` of a directory, or None.

    Raises:
        ValueError: if the file or the checkpoint is missing or damaged.
    """
    if arguments.descriptions is not None:
        return FileDescriptions(Path(arguments.descriptions))
    if arguments.describe_model is None:
        return None
    cache = ReplyCache(directory / DESCRIPTIONS_FILE)
    if arguments.describe_url is not None:
        return EndpointDescriptions(arguments, arguments.describe_model, arguments.describe_url, cache)
    return CheckpointDescriptions(arguments, arguments.describe_model, cache)


class FileDescriptions:
    """Descriptions from a file, keyed by prompt id."""

    def __init__(self, path: Path) -> None:
        self._texts = read_descriptions(path)
        self.source = {"descriptions_sha256": content_hash(path.read_bytes())}
        self.undescribed: Counter[str] = Counter()

    def check(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """A file needs no test."""

    def prepare(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """A file needs no preparation."""

    def __call__(self, prompt: Prompt, directory: Path) -> str | None:
        return self._texts.get(prompt.id)


def read_descriptions(path: Path) -> dict[str, str]:
    """Reads a file of descriptions.

    Raises:
        ValueError: if the file is missing, a line is not a description, or an id appears twice.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a JSONL file with id and description on each line")
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                name, text = row["id"], row["description"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no object with id and description") from error
            if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}:{number}: id and description must be texts, and not empty")
            if name in texts:
                raise ValueError(f"{path}:{number}: id {name!r} appears twice; expected one description per id")
            texts[name] = text.strip()
    return texts


class EndpointDescriptions:
    """Descriptions by a model behind an endpoint."""

    def __init__(self, arguments: DescriptionArguments, model: str, url: str, cache: ReplyCache) -> None:
        self._arguments, self._cache = arguments, cache
        self._endpoint = Endpoint(
            url=url,
            model=model,
            key_variable=arguments.describe_key_variable,
            timeout_s=arguments.describe_timeout_s,
            num_attempts=arguments.describe_attempts,
            num_at_once=MAX_AT_ONCE,
        )
        self._calls: Calls[str | EndpointError] = Calls()
        self._unusable: dict[str, str] = {}
        self.source = _source(arguments, model)

    @property
    def undescribed(self) -> Counter[str]:
        return Counter(self._unusable.values())

    def check(self, prompts: Sequence[Prompt], directory: Path) -> None:
        if _missing(self.source, ReplyCache(self._cache.path), prompts, directory):
            question = self._messages([_blank_picture()])
            self._endpoint.check(question, max_tokens=self._arguments.describe_max_tokens, option="describe_url")

    def prepare(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """Requests the missing descriptions concurrently."""
        missing = _missing(self.source, self._cache, prompts, directory)
        for key, prompt in missing.items():
            self._start(key, prompt, directory)
        failed: Counter[str] = Counter()
        for key in progress(missing, label="descriptions", total=len(missing), unit="image"):
            outcome = self._calls.result(key)
            if isinstance(outcome, UnansweredError):
                failed[str(outcome)] += 1
            elif isinstance(outcome, EndpointError):
                self._unusable[key] = str(outcome)
        if failed:
            raise RuntimeError(
                f"{failed.total()} of {len(missing)} requests for a description had no answer: "
                f"{count_reasons(failed, hint=LIMIT_HINT)}; the same command asks again, for these alone"
            )

    def __call__(self, prompt: Prompt, directory: Path) -> str | None:
        if not prompt.images:
            return None
        key = _key(self.source, _read(prompt, directory))
        text = self._cache.get(key)
        if text is not None:
            return text
        self._start(key, prompt, directory)
        outcome = self._calls.result(key)
        return outcome if isinstance(outcome, str) else None

    def _start(self, key: str, prompt: Prompt, directory: Path) -> None:
        self._calls.start(key, lambda: self._ask(key, prompt, directory))

    def _ask(self, key: str, prompt: Prompt, directory: Path) -> str | EndpointError:
        """Requests and caches the description of a prompt's images; returns it, or the reason why there is none."""
        messages = self._messages(_read(prompt, directory))
        try:
            text = self._endpoint.ask(messages, max_tokens=self._arguments.describe_max_tokens).strip()
        except EndpointError as error:
            return error
        self._cache.put(key, text, id=prompt.id)
        return text

    def _messages(self, images: Sequence[bytes]) -> Messages:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_uri(data)}} for data in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self._arguments.describe_instruction}]}]


class CheckpointDescriptions:
    """Descriptions by a checkpoint, which is loaded if one is missing and freed afterwards."""

    def __init__(self, arguments: DescriptionArguments, model: str, cache: ReplyCache) -> None:
        from eval.replies.subject import open_subject

        self._arguments, self._cache = arguments, cache
        self._subject: Subject = open_subject(model)
        self.source = _source(arguments, self._subject.fingerprint)
        self.undescribed: Counter[str] = Counter()

    def check(self, prompts: Sequence[Prompt], directory: Path) -> None:
        """The checkpoint has already been opened."""

    def prepare(self, prompts: Sequence[Prompt], directory: Path) -> None:
        missing = _missing(self.source, self._cache, prompts, directory)
        if missing:
            self._describe(missing, directory)

    def __call__(self, prompt: Prompt, directory: Path) -> str | None:
        if not prompt.images:
            return None
        self.prepare([prompt], directory)
        return self._cache.get(_key(self.source, _read(prompt, directory))) or None

    def _describe(self, missing: Mapping[str, Prompt], directory: Path) -> None:
        from eval.replies.generation import generate, greedy_settings, make_batches, render_prompt

        model, processor = self._subject.load(dtype="auto", attn_implementation="sdpa")
        settings = greedy_settings(model, processor, self._arguments.describe_max_tokens)
        keys = list(missing)
        asked = [replace(missing[key], question=self._arguments.describe_instruction) for key in keys]
        texts = [render_prompt(processor, prompt, style="plain", system_prompt=None) for prompt in asked]
        batches = make_batches(asked, texts, self._arguments.describe_batch_size)
        for batch in progress(batches, label="descriptions", total=len(batches), unit="batch"):
            images = [[directory / image for image in asked[index].images] for index in batch]
            replies = generate(model, processor, [texts[index] for index in batch], images, settings)
            for index, reply in zip(batch, replies, strict=True):
                text = without_thoughts(reply.response).strip()
                self._cache.put(keys[index], text, id=asked[index].id)
                if not text:
                    self.undescribed[_why_empty(reply)] += 1


def _why_empty(reply: "Generation") -> str:
    if not reply.response.strip():
        return "an empty reply"
    return CUT_IN_THOUGHTS if reply.finish_reason == "length" else "thoughts without a reply"


def _source(arguments: DescriptionArguments, model: str) -> dict[str, Any]:
    return {
        "describe_model": model,
        "describe_instruction": arguments.describe_instruction,
        "describe_max_tokens": arguments.describe_max_tokens,
    }


def _missing(
    source: Mapping[str, Any], cache: ReplyCache, prompts: Sequence[Prompt], directory: Path
) -> dict[str, Prompt]:
    """Returns a prompt for each set of images without a description, keyed by the set."""
    missing: dict[str, Prompt] = {}
    for prompt in prompts:
        key = _key(source, _read(prompt, directory))
        if prompt.images and cache.get(key) is None:
            missing.setdefault(key, prompt)
    return missing


def _key(source: Mapping[str, Any], images: Sequence[bytes]) -> str:
    return content_hash(json.dumps(source, sort_keys=True), *images)


def _read(prompt: Prompt, directory: Path) -> list[bytes]:
    return [(directory / image).read_bytes() for image in prompt.images]


def _blank_picture() -> bytes:
    from io import BytesIO

    from PIL import Image

    stored = BytesIO()
    Image.new("RGB", (CHECK_PIXELS, CHECK_PIXELS), "white").save(stored, format="PNG")
    return stored.getvalue()


def _data_uri(data: bytes) -> str:
    """Returns an image as a data URL."""
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(data)) as picture:
        mime = None if is_deep(picture) else SENT_AS_IS.get(picture.format or "")
        if mime is None:
            from qwen_vl_utils.vision_process import to_rgb

            stored = BytesIO()
            to_rgb(eight_bits(picture)).save(stored, format="PNG")
            data, mime = stored.getvalue(), "image/png"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
