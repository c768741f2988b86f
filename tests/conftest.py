"""Fixtures shared by all tests: an untrained checkpoint of each kind: pocket, Qwen2, Qwen2-VL, Qwen3-VL, InternVL."""

import fcntl
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.layout import Layout, layout_of
from models.pocket import CHAT_TEMPLATE, INITIALIZER_RANGE, PocketShape, build_tokenizer, write_pocket_checkpoint
from tests.gemma4 import write_gemma4
from tests.small_internvl import build_internvl_tokenizer, write_internvl
from tests.small_study import write_study_settings
from tests.warm import remember_packages, start_server
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.run import is_finished

quiet_libraries()
remember_packages()
logging.getLogger().addHandler(logging.NullHandler())  # so that warnings of libraries do not reach stderr
gc.disable()  # until all modules are imported

LONGEST = (
    "slurm/test_real_slurm_study.py", "train/test_study_end_to_end.py", "slurm/test_real_slurm.py",
    "train/test_modes.py", "train/test_family_processes.py", "models/check/test_families.py",
    "train/running/test_telemetry_processes.py", "train/planning/test_memory.py",
    "benchmarks/test_gpu_rehearsal.py", "train/test_processes.py", "docs/test_guides.py",
    "benchmarks/known_answers/test_command.py", "train/sharing/test_engines.py", "tracking/jobs/test_warm.py",
    "benchmarks/necessary_block/test_breakage.py", "train/running/test_stale_gradients.py",
    "eval/replies/test_vllm_engine.py", "eval/replies/test_vllm_cut_start.py", "train/rollouts/test_vllm.py",
    "train/rollouts/test_vllm_kinds.py",
)  # fmt: skip
"""Files of minutes. A worker takes a file at a time: last in line, one of them would keep one worker from its end."""


NUM_TAUGHT = 1440
"""Prompts from which the trained pocket model learned, in batches of 16."""
TAUGHT_WITHIN_S = 300.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, and marks as slow what `cases_slow` leaves to the slow tests."""

    def place(item: pytest.Item) -> int:
        name = item.path.as_posix()
        return next((number for number, file in enumerate(LONGEST) if name.endswith(file)), len(LONGEST))

    seen: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if item.get_closest_marker("cases_slow") and not item.get_closest_marker("slow"):
            if test in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(test)
    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Leaves the millions of objects of the libraries to no later collection: each would take half a second."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries count as leaked what is not taken down at the end


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder by name, the first time that any worker of this run asks for it; the others wait, and share it."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"

    def make(name: str, build: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        shared.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def warm_python(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A `python` for processes that need the libraries: forks of one that has imported them (`tests/warm.py`)."""
    first = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    return made_once("warm", lambda folder: start_server(folder, lives_with=first)) / "python"


@pytest.fixture
def warm_children(warm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test starts as `sys.executable` is warm."""
    monkeypatch.setattr(sys, "executable", str(warm_python))


@pytest.fixture(scope="session")
def pocket_study(warm_python: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder as `make pocket` leaves it, of a study of two arms and two seeds with a few training steps.

    Shared by all workers: copy it before changing anything in it. `settings/necessity.yaml` beside it is what made it.
    """

    def build(folder: Path) -> None:
        config = write_study_settings(folder / "settings")
        words = ["-m", "train.necessity", "--config", str(config), "--output_dir", str(folder / "pocket")]
        done = subprocess.run([warm_python, *words], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"report: {folder / 'pocket' / 'report.html'}" in done.stdout

    return made_once("pocket-study", build) / "pocket"


@pytest.fixture(scope="session")
def pocket_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pocket checkpoint (seed 0), shared by the session: copy it before changing anything in it."""
    directory = tmp_path_factory.mktemp("pocket") / "checkpoint"
    write_pocket_checkpoint(directory, shape=PocketShape(), seed=0)
    return directory


@pytest.fixture(scope="session")
def shallow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pocket checkpoint with a layer a block: a step's time goes by the number of tensors."""
    directory = tmp_path_factory.mktemp("shallow") / "checkpoint"
    write_pocket_checkpoint(directory, shape=PocketShape(num_layers=3), seed=0)
    return directory


@pytest.fixture(scope="session")
def pocket_prompts(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The prompts of a small pocket world: `base` to learn from, `rl`, and 300 held-out ones, 100 an ability."""
    sizes = {
        "num_base": NUM_TAUGHT, "num_sft": 16, "num_rl": 96, "num_validation_per_ability": 4,
        "num_test_per_ability": 100,
    }  # fmt: skip

    from data_builders.build import main

    def build(folder: Path) -> None:
        main(["pocket", *flags(output_dir=folder, **sizes)])

    return made_once("pocket-prompts", build) / "data"


@pytest.fixture(scope="session")
def wide_headed_pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pocket checkpoint of three layers with heads of 32: vLLM on CPUs refuses the default 16."""
    directory = tmp_path_factory.mktemp("wide-headed") / "checkpoint"
    write_pocket_checkpoint(directory, shape=PocketShape(num_layers=3, num_heads=4, num_kv_heads=2), seed=0)
    return directory


@pytest.fixture(scope="session")
def pocket_training(
    wide_headed_pocket: Path, pocket_prompts: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Iterator[Path]:
    """The run behind `trained_pocket`, begun: for tests that leave a core idle before others need its result."""
    begun: list[subprocess.Popen[bytes]] = []
    config = REPOSITORY_ROOT / "configs" / "pocket" / "base.yaml"

    def begin(folder: Path) -> None:
        words = flags(
            config=config, model_name_or_path=wide_headed_pocket, prompts=pocket_prompts, max_steps=NUM_TAUGHT // 16,
            output_dir=folder / "sft",
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "train.sft", *words]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            begun.append(subprocess.Popen(command, cwd=REPOSITORY_ROOT, env=environment, stdout=log, stderr=log))

    yield made_once("trained", begin) / "sft"
    for process in begun:
        process.wait()  # another worker may need it


@pytest.fixture(scope="session")
def trained_pocket(pocket_training: Path) -> Path:
    """A pocket checkpoint with heads of 32, taught for some 20 seconds: its replies are short and sometimes right."""
    deadline = time.monotonic() + TAUGHT_WITHIN_S
    while not is_finished(pocket_training):
        assert time.monotonic() < deadline, (pocket_training.parent / "log").read_text()
        time.sleep(0.05)
    return pocket_training / "final"


def flags(**values: Any) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def pocket_layout(pocket_checkpoint: Path) -> Layout:
    return layout_of(pocket_checkpoint)


@pytest.fixture(scope="session")
def pocket_tokenizer() -> Any:
    return build_tokenizer()


HEAD_SIZE = 16
HEAD_SIZE_VLLM = 32
"""The smallest that vLLM's attention takes on a CPU."""


def decoder_sizes(tokenizer: Any, head_size: int = HEAD_SIZE) -> dict[str, Any]:
    """A decoder of four narrow layers, as the families below have it."""
    token_id = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 64 // head_size, "num_key_value_heads": 32 // head_size, "max_position_embeddings": 512,
        "initializer_range": INITIALIZER_RANGE, "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"), "pad_token_id": token_id("<|endoftext|>"),
    }  # fmt: skip


def rope_sections(head_size: int) -> list[int]:
    """Time, height and width in the published proportion, 2 : 3 : 3."""
    return [head_size // 8, head_size * 3 // 16, head_size * 3 // 16]


@pytest.fixture(scope="session")
def qwen2_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-only Qwen2 with a head of its own, as Qwen2.5's larger models have it."""
    return write_qwen2(tmp_path_factory.mktemp("qwen2") / "checkpoint", pocket_tokenizer)


def write_qwen2(directory: Path, tokenizer: Any, head_size: int = HEAD_SIZE) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**decoder_sizes(tokenizer, head_size), tie_word_embeddings=False))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen3_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-only Qwen3 with tied embeddings, as its smaller models have it."""
    return write_qwen3(tmp_path_factory.mktemp("qwen3") / "checkpoint", pocket_tokenizer)


@pytest.fixture(scope="session")
def qwen3_untied_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-only Qwen3 with a head of its own, as its larger models have it."""
    return write_qwen3(tmp_path_factory.mktemp("qwen3-untied") / "checkpoint", pocket_tokenizer, tied=False)


def write_qwen3(directory: Path, tokenizer: Any, head_size: int = HEAD_SIZE, *, tied: bool = True) -> Path:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = decoder_sizes(tokenizer, head_size)
    sizes["num_attention_heads"] *= 2  # wider than the hidden size, as Qwen3-0.6B and 4B have it
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=head_size, tie_word_embeddings=tied))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen3_vl_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-VL with tied embeddings and two deepstack mergers, as its smaller models have it."""
    return write_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl") / "checkpoint", pocket_tokenizer)


def write_qwen3_vl(directory: Path, tokenizer: Any, head_size: int = HEAD_SIZE) -> Path:
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    token_id = tokenizer.convert_tokens_to_ids
    rope = {
        "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": rope_sections(head_size),
        "mrope_interleaved": True,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config={**decoder_sizes(tokenizer, head_size), "head_dim": head_size, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64, "initializer_range": INITIALIZER_RANGE,
        },
        tie_word_embeddings=True,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=16 * 32 * 32),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen3_5_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3.5 in fp32 with tied embeddings; of four decoder layers, the third has full attention."""
    return write_qwen3_5(tmp_path_factory.mktemp("qwen3_5") / "checkpoint", pocket_tokenizer)


@pytest.fixture(scope="session")
def mixed_checkpoint(qwen3_5_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3.5 as it is published: bf16, `A_log` and the linear norms in fp32, and tensors of `mtp`."""
    return write_mixed(qwen3_5_checkpoint, tmp_path_factory.mktemp("mixed") / "checkpoint")


@pytest.fixture(scope="session")
def qwen3_5_text_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder of a Qwen3.5 alone, tied."""
    import torch
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    directory = tmp_path_factory.mktemp("qwen3_5_text") / "checkpoint"
    torch.manual_seed(0)
    sizes = linear_decoder_sizes(pocket_tokenizer)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**sizes, tie_word_embeddings=True))
    model.generation_config.eos_token_id = pocket_tokenizer.eos_token_id
    model.generation_config.pad_token_id = pocket_tokenizer.pad_token_id
    model.save_pretrained(directory)
    pocket_tokenizer.save_pretrained(directory)
    return directory


def write_qwen3_5(directory: Path, tokenizer: Any, head_size: int = HEAD_SIZE) -> Path:
    import torch
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen3_5Config(
        text_config={**linear_decoder_sizes(tokenizer, head_size), "tie_word_embeddings": True},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 64, "initializer_range": INITIALIZER_RANGE,
        },
        tie_word_embeddings=True,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.ndim == 1:  # not ones and zeros, so that no mistake about them is hidden
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=16 * 32 * 32),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def linear_decoder_sizes(tokenizer: Any, head_size: int = HEAD_SIZE) -> dict[str, Any]:
    """A decoder of four layers, the third with full attention, the others with a recurrent state."""
    rope = {
        "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": rope_sections(head_size),
        "mrope_interleaved": True, "partial_rotary_factor": 1.0,
    }  # fmt: skip
    linear = "linear_attention"
    return {
        **decoder_sizes(tokenizer, head_size), "head_dim": head_size, "rope_parameters": rope,
        "layer_types": [linear, linear, "full_attention", linear], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    }  # fmt: skip


def write_mixed(source: Path, directory: Path) -> Path:
    """Writes a Qwen3.5 in the published dtypes, with tensors that predict a second token."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, directory)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    hidden = tensors["model.language_model.norm.weight"].shape[0]
    layer = "model.language_model.layers.2."
    own_layer = {name.removeprefix(layer): own for name, own in tensors.items() if name.startswith(layer)}
    shapes = {f"mtp.layers.0.{rest}": tuple(own.shape) for rest, own in own_layer.items()}
    shapes |= {"mtp.fc.weight": (hidden, 2 * hidden), "mtp.norm.weight": (hidden,)}
    shapes |= {f"mtp.pre_fc_norm_{of}.weight": (hidden,) for of in ("embedding", "hidden")}
    tensors |= {name: torch.randn(shape, generator=generator) for name, shape in sorted(shapes.items())}
    kept = (".A_log", ".linear_attn.norm.weight")
    tensors = {name: own if name.endswith(kept) else own.bfloat16() for name, own in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "bfloat16"
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


@pytest.fixture(scope="session")
def qwen2_vl_checkpoint(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL with a head of its own, as its 7B model has it."""
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl") / "checkpoint", pocket_tokenizer)


def write_qwen2_vl(directory: Path, tokenizer: Any, head_size: int = HEAD_SIZE) -> Path:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    token_id = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": rope_sections(head_size)}
    config = Qwen2VLConfig(
        text_config={**decoder_sizes(tokenizer, head_size), "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        tie_word_embeddings=False,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pixels = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def gemma4_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 4 built like E2B (`tests/gemma4.py`)."""
    return write_gemma4(tmp_path_factory.mktemp("gemma4") / "checkpoint", "small")


@pytest.fixture(scope="session")
def gemma4_large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 4 built like 31B."""
    return write_gemma4(tmp_path_factory.mktemp("gemma4-large") / "checkpoint", "large")


@pytest.fixture(scope="session")
def internvl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random InternVL with a Qwen2 decoder and a head of its own, as InternVL 3 has it."""
    return write_internvl(tmp_path_factory.mktemp("internvl") / "checkpoint", build_internvl_tokenizer())


def write_internvl_vllm(directory: Path, tokenizer: Any, head_size: int) -> Path:
    """With a tokenizer of its own, and heads of 32 in the tower too."""
    return write_internvl(directory, build_internvl_tokenizer(), head_size=head_size, hidden_size=2 * head_size)


FAMILIES_VLLM = {
    "qwen2": write_qwen2, "qwen3": write_qwen3, "qwen2_vl": write_qwen2_vl, "qwen3_vl": write_qwen3_vl,
    "internvl": write_internvl_vllm,
}  # fmt: skip


@pytest.fixture(scope="session")
def family_checkpoint_vllm(pocket_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a random checkpoint of a family with heads that vLLM takes on a CPU."""

    def write(family: str) -> Path:
        directory = tmp_path_factory.mktemp(family) / "checkpoint"
        return FAMILIES_VLLM[family](directory, pocket_tokenizer, HEAD_SIZE_VLLM)

    return write
