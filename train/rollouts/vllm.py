"""Rollouts with vLLM, which gets exactly the trainer's prompts and weights.

TRL's `VLLMGeneration` drives the engine; four things are fixed or added if the engine runs in the trainer's process
(`vllm_mode: colocate`). Read in TRL 1.16 and vLLM 0.31; `tests/train/rollouts/test_vllm.py` fails if they change.

- **Images.** TRL passes prompts in which an image is already expanded to n image tokens, and vLLM expands the first of
  them to n again. Here each image is one token, as vLLM expects. The prompt that the engine reports back must equal the
  trainer's, token for token, for every reply.
- **Weights.** Every tensor that is sent is read back from the engine and must equal the trainer's, cast to the engine's
  dtype, bit for bit. Frozen tensors are sent once, and `rollout_check_tensors` of them are read back after each sync;
  under `vllm_enable_sleep_mode`, which discards weights, all are sent each time.
- **Caches.** vLLM caches the features of images. The cache is cleared at every sync, since the vision tower may have
  been trained.
- **Dtype and random numbers.** The engine computes in the trainer's dtype (vLLM's default for a float32 checkpoint is
  bfloat16). At startup vLLM seeds the process's random number generators by rank; their states are restored, so that
  runs with different seeds sample differently, and a resumed run samples like an uninterrupted one.

With `vllm_mode: server` the prompts are compared in the same way; the server's weights cannot be read.
"""

import os
import random
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from eval.replies.engines import CACHE_VARIABLE, available_bytes
from models.families import family_of
from models.layout import WIDTHS, head_size
from tracking.processes import num_processes
from train.rollouts.checks import check_covered, check_prompts, check_sent, only_one
from train.rollouts.setup import RolloutArguments

COLOCATE = "colocate"
MIN_CACHE_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """The settings of a run that the engine needs."""

    arguments: RolloutArguments
    dtype: str
    """Dtype of the engine's weights and arithmetic: `float32` or `bfloat16`."""
    trainable: frozenset[str]
    """Canonical names of the trainable weights."""
    max_images: int
    """Maximum number of images per prompt; 0 for a text-only model."""
    device: str
    """`cuda` or `cpu`."""


@dataclass(frozen=True)
class Place:
    """Location of a trainer's tensor in the engine."""

    parameter: str
    """The engine's parameter name; several of the trainer's tensors may be parts of one parameter."""
    start: int
    """Offset of the part, in elements of the flattened parameter."""


@dataclass
class SyncReport:
    """Statistics of this attempt's weight syncs."""

    num_syncs: int = 0
    sent_bytes: int = 0
    """Bytes sent by the latest sync."""
    whole_bytes: int = 0
    """Bytes of a sync that sends every tensor."""
    num_compared: int = 0
    """Number of tensors read back from the engine and found equal, over all syncs."""


class CheckedGeneration(VLLMGeneration):
    """TRL's vLLM generation, with the trainer's prompts, weights and random numbers."""

    def __init__(self, *args: Any, setup: EngineSetup | None, **kwargs: Any) -> None:
        assert setup is not None, "the trainer was made without what its engine has to know"
        self.setup = setup
        self.report = SyncReport()
        self._places: dict[str, Place] = {}
        self._rng = random.Random(0)
        super().__init__(*args, **kwargs)

    def _init_vllm(self) -> None:
        tokens = self.max_num_seqs * (
            self.max_model_length or self.model.config.get_text_config().max_position_embeddings
        )
        options = engine_options(self.setup, cache_bytes(self.model.config, tokens, self.setup.dtype))
        if self.setup.device == "cpu":
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # otherwise vLLM pins the trainer to its cores
        if num_processes() == 1:
            os.environ.setdefault("MASTER_PORT", str(free_port()))
        with (
            kept_random_numbers(),
            replaced(vllm_generation, "LLM", partial(vllm_generation.LLM, **options)),
            unpacked_cpu_weights(self.setup.device),
        ):
            super()._init_vllm()

    # --- prompts ---

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        """Generates replies, and checks that the engine's prompts equal the trainer's.

        Raises:
            RuntimeError: if they differ.
        """
        shown = prompts
        if self.mode == COLOCATE and images is not None:
            # TRL 1.16 takes the first element of an empty list; None means no images.
            images = [pictures or None for pictures in images]
            token = self.processing_class.image_token_id
            shown = [
                one_token_a_picture(ids, token, num_images=len(pictures or ()), marks=self._picture_marks())
                for ids, pictures in zip(prompts, images, strict=True)
            ]
        with self._draws_in_step():
            read, replies, logprobs, token_ids = super().generate(shown, images, num_generations, profiler)
        check_prompts(prompts, read)
        return read, replies, logprobs, token_ids

    def _picture_marks(self) -> list[int]:
        """Returns the ids of the tokens that the processor, and vLLM too, adds before and after a picture's own."""
        names = family_of(self.model.config.model_type).picture_marks
        marks: list[int] = self.processing_class.tokenizer.convert_tokens_to_ids(
            [getattr(self.processing_class, name) for name in names]
        )
        return marks

    @contextmanager
    def _draws_in_step(self) -> Iterator[None]:
        """Makes all processes of one engine sample the same tokens: each samples with its own random state.

        vLLM's own seed would do this, but is the same for every run (`kept_random_numbers`).
        """
        if self.mode != COLOCATE or self.tensor_parallel_size == 1:
            yield
            return
        seeds: list[Any] = [None] * self.tensor_parallel_size
        torch.distributed.all_gather_object(seeds, int(torch.randint(2**31, (1,))), group=self.tp_group)
        with kept_random_numbers():
            torch.manual_seed(seeds[0])
            yield

    # --- weights ---

    def sync_weights(self) -> None:
        """Sends the trainer's weights to the engine and reads them back.

        Raises:
            RuntimeError: if a weight of the engine differs from the trainer's.
        """
        if self.mode != COLOCATE:
            super().sync_weights()
            return
        if self.enable_sleep_mode:
            vllm_generation.empty_cache()
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        engine = self._engine_weights()
        first = not self._places
        sent: set[str] = set()
        sent_bytes = 0
        filled: dict[str, int] = {}
        for name, tensor in self._iter_named_params():
            loaded = self._engine_model().load_weights([(name, tensor)])
            if first:
                parameter = only_one(name, loaded)
                self._places[name] = Place(parameter, filled.get(parameter, 0))
                filled[parameter] = filled.get(parameter, 0) + tensor.numel()
            self._compare(name, tensor, engine)
            sent.add(name)
            sent_bytes += tensor.numel() * WIDTHS[self.setup.dtype]
        if first:
            check_covered(filled, engine, is_divided=self.tensor_parallel_size > 1)
            self.report.whole_bytes = sent_bytes
        check_sent(sent, self._places, self.setup.trainable)
        self._check_kept(set(self._places) - sent)
        self.report.num_syncs += 1
        self.report.sent_bytes = sent_bytes
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors to send: all of them at first and after a sleep, later only trainable ones."""
        if self.mode != COLOCATE or self.enable_sleep_mode or not self._places:
            yield from super()._iter_named_params()
        elif self._sends_merged():
            yield from (pair for pair in super()._iter_named_params() if pair[0] in self.setup.trainable)
        else:
            yield from self._gathered(self.setup.trainable)

    def _sends_merged(self) -> bool:
        """True if TRL itself must send the weights: for merged adapters, and for FSDP."""
        return bool(is_peft_model(self.model) or self._dist.is_fsdp)

    def _gathered(self, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields some parameters, gathered under ZeRO-3; collective."""
        for name, parameter in self.model.named_parameters():
            if name in names:
                with self._dist.gather_params([parameter]):
                    yield name, parameter.data

    def _check_kept(self, names: Collection[str]) -> None:
        """Compares a random selection of the weights that were not sent, the same in every process; collective."""
        if self._sends_merged():
            return  # merging all adapters again would cost as much as the sync
        drawn = self._rng.sample(sorted(names), min(self.setup.arguments.rollout_check_tensors, len(names)))
        engine = self._engine_weights()
        for name, tensor in self._gathered(set(drawn)):
            self._compare(name, tensor, engine)

    def _compare(self, name: str, tensor: torch.Tensor, engine: dict[str, torch.Tensor]) -> None:
        """Compares a tensor with the engine's, cast to the engine's dtype."""
        if self.tensor_parallel_size > 1:
            return  # each process has a part; log-probabilities are still compared
        place = self._places[name]
        held = engine[place.parameter].detach().reshape(-1)[place.start : place.start + tensor.numel()]
        expected = tensor.detach().reshape(-1).to(held.dtype)
        if not torch.equal(held, expected.to(held.device)):
            differ = int((held != expected.to(held.device)).sum())
            raise RuntimeError(
                f"after the weight sync {differ} of {tensor.numel()} elements of {name} differ in vLLM "
                f"({place.parameter}, {held.dtype}) from the trainer's; its replies would come from another model"
            )
        self.report.num_compared += 1

    def _engine_model(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.model_runner.model

    def _engine_weights(self) -> dict[str, torch.Tensor]:
        return dict(self._engine_model().named_parameters())


def cache_bytes(config: Any, num_tokens: int, dtype: str) -> int:
    """Returns the bytes of keys and values for a number of tokens: 2 · layers · heads · head size · width per token."""
    text = config.get_text_config()
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size(text.to_dict()) * WIDTHS[dtype]
    return int(num_tokens * per_token)


def engine_options(setup: EngineSetup, cache: int) -> dict[str, Any]:
    """Returns the arguments of vLLM's `LLM` that TRL (1.16) does not set.

    Args:
        setup: the run's settings.
        cache: bytes of the keys and values of all sequences at maximum length.
    """
    options: dict[str, Any] = {"dtype": setup.dtype}
    if setup.max_images:
        options["limit_mm_per_prompt"] = {"image": setup.max_images, "video": 0}
    if setup.device == "cpu":
        options["enforce_eager"] = True  # compilation takes longer than it saves
        if not os.environ.get(CACHE_VARIABLE):  # otherwise vLLM's share includes the trainer's memory
            quarter = available_bytes() // 4
            options["kv_cache_memory_bytes"] = max(MIN_CACHE_BYTES, min(cache, quarter))
    return options


def one_token_a_picture(
    ids: Sequence[int], image_token: int, *, num_images: int, marks: Collection[int] = ()
) -> list[int]:
    """Returns a prompt's tokens with each image's run of image tokens reduced to one.

    Args:
        ids: token ids of the trainer; an image with n patches after merging is a run of n image tokens.
        image_token: the id of the image token.
        num_images: number of images in the prompt, which must equal the number of runs.
        marks: tokens that are left out directly before and after a run.
    """
    kept = [
        token
        for before, token, after in zip([None, *ids], ids, [*ids[1:], None], strict=False)
        if not token == image_token == before and not (token in marks and image_token in (before, after))
    ]
    assert kept.count(image_token) == num_images, f"{kept.count(image_token)} runs of image tokens, {num_images} images"
    return kept


def free_port() -> int:
    """Returns a free port, for a process that only communicates with itself.

    TRL (1.16) takes the first free port of a fixed list and binds it much later, so two runs on one machine, such as
    the arms of a study, would take the same one.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def kept_random_numbers() -> Iterator[None]:
    """Restores the random states of Python, NumPy and PyTorch.

    At startup, vLLM (0.31) seeds all of them with the seed from TRL (1.16): the process's rank, not the run's seed.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # By default fork_rng covers every GPU of the machine, and warns.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily replaces an attribute of a module."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def unpacked_cpu_weights(device: str) -> Iterator[None]:
    """Disables weight packing on CPUs, so that a sync can update vLLM's weights.

    vLLM (0.31) packs linear maps for oneDNN or AVX-512 while loading and computes with the packed copy: a later sync
    fails for most of them, and for the head it would change an unused copy.
    """
    if device != "cpu":
        yield
        return
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    with replaced(utils, "dispatch_cpu_unquantized_gemm", plain):
        yield
