import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tracking.command import REPOSITORY_ROOT, parse_arguments, run_command
from tracking.records import RecordLog
from tracking.run import open_run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    output_dir: str = field(metadata={"help": "run directory"})
    seed: int = field(default=0, metadata={"help": "seed"})
    learning_rate: float = field(default=1e-3, metadata={"help": "step size"})
    tasks: list[str] = field(default_factory=list, metadata={"help": "what to do"})
    overwrite: bool = field(default=False, metadata={"help": "start over"})


@dataclass(frozen=True, kw_only=True)
class Decoding:
    max_tokens: int = field(default=64, metadata={"help": "longest answer, in tokens"})

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")


def parse(*argv: str) -> tuple[Arguments, Decoding]:
    arguments, decoding = parse_arguments(argv, Arguments, Decoding, description="A command.")
    return arguments, decoding


def write_config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_config_fills_every_dataclass_and_flags_override_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, "output_dir: out\nseed: 3\nlearning_rate: 1e-5\nmax_tokens: 8\noverwrite: true\n")
    arguments, decoding = parse("--config", config, "--seed", "9")
    assert arguments == Arguments(output_dir="out", seed=9, learning_rate=1e-5, overwrite=True)
    assert decoding == Decoding(max_tokens=8)


def test_flags_alone_suffice(tmp_path: Path) -> None:
    arguments, decoding = parse("--output-dir", "out", "--max-tokens", "8")
    assert arguments == Arguments(output_dir="out") and decoding == Decoding(max_tokens=8)


@pytest.mark.parametrize(
    ("typo", "nearest"), [("sede", "seed"), ("max_token", "max_tokens"), ("learning-rate", "learning_rate")]
)
def test_misspelt_config_key_names_file_and_nearest_key_in_one_line(tmp_path: Path, typo: str, nearest: str) -> None:
    config = write_config(tmp_path, f"output_dir: out\n{typo}: 1\n")
    with pytest.raises(ValueError, match=f"unknown key '{typo}'; did you mean '{nearest}'") as caught:
        parse("--config", config)
    assert config in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", [["--sede", "1"], ["--sede=1"]])
def test_misspelt_flag_names_the_nearest(flag: list[str]) -> None:
    with pytest.raises(ValueError, match=r"unknown argument '--sede'; did you mean '--seed'") as caught:
        parse("--output-dir", "out", *flag)
    assert "\n" not in str(caught.value)


def test_stray_word_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown argument 'stray'"):
        parse("--output-dir", "out", "stray")


def test_missing_config_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"configs/nowhere\.yaml: no such file"):
        parse("--config", "configs/nowhere.yaml")


def test_config_flag_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="--config needs a file"):
        parse("--config")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- output_dir\n- out\n", "expected `name: value` lines, found list"),
        ("", "expected `name: value` lines, found NoneType"),
        ("output_dir\n", "expected `name: value` lines, found str"),
        ("output_dir: [out\n", "not readable as YAML"),
        ("output_dir: out\n\tseed: 1\n", "not readable as YAML"),
    ],
)
def test_malformed_config_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    config = write_config(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        parse("--config", config)
    assert config in str(caught.value) and "\n" not in str(caught.value)


def test_missing_required_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--output-dir is required: run directory$"):
        parse("--config", write_config(tmp_path, "seed: 1\n"))


def test_value_of_the_wrong_type_names_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed: 'three' is not a whole number"):
        parse("--output-dir", "out", "--seed", "three")
    with pytest.raises(ValueError, match="seed: 'three' is not a whole number"):
        parse("--config", write_config(tmp_path, "output_dir: out\nseed: three\n"))


def test_value_a_dataclass_refuses_is_a_mistake_of_the_person() -> None:
    with pytest.raises(ValueError, match="max_tokens is 0; it must be at least 1"):
        parse("--output-dir", "out", "--max-tokens", "0")


def test_our_value_error_becomes_one_line_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError("cuts [3, 1] do not divide 28 layers")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: cuts [3, 1] do not divide 28 layers\n"


def test_our_runtime_error_becomes_one_line_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise RuntimeError("freezing was breached in 1 of 210 tensors")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: freezing was breached in 1 of 210 tensors\n"


def test_library_error_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        json.loads("{")  # a ValueError, raised by the standard library

    with pytest.raises(json.JSONDecodeError):
        run_command(main)
    assert capsys.readouterr().err == ""


def test_error_of_an_installed_library_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        import numpy as np

        np.broadcast_shapes((2,), (3,))  # raised in numpy's own Python file, inside this repository's .venv

    with pytest.raises(ValueError):
        run_command(main)
    assert capsys.readouterr().err == ""


def test_bug_of_ours_keeps_its_traceback() -> None:
    def main() -> None:
        raise AssertionError("an invariant")

    with pytest.raises(AssertionError, match="an invariant"):
        run_command(main)


def test_interrupt_says_that_the_same_command_continues(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 130
    assert "continues where it stopped" in capsys.readouterr().err


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError("a mistake")

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2 and capsys.readouterr().err == ""


def test_typing_mistake_at_a_real_command_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "models.pocket", "--output-dir", str(tmp_path / "out"), "--sede", "1"],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown argument '--sede'; did you mean '--seed'?\n"
    assert not (tmp_path / "out").exists()


def test_config_joined_by_an_equals_sign_is_read(tmp_path: Path) -> None:
    arguments, _ = parse("--config=" + write_config(tmp_path, "output_dir: out\nseed: 3\n"))
    assert arguments == Arguments(output_dir="out", seed=3)


def test_abbreviated_flag_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown argument '--see'; did you mean '--seed'"):
        parse("--output-dir", "out", "--see", "3")


@pytest.mark.parametrize("key", ["config", "help"])
def test_config_key_that_is_no_argument_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{key}'"):
        parse("--config", write_config(tmp_path, f"output_dir: out\n{key}: x\n"))


@pytest.mark.parametrize("value", ["1.5", "[1]"])
def test_config_value_that_is_no_whole_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"experiment\.yaml: seed is .*; expected a whole number"):
        parse("--config", write_config(tmp_path, f"output_dir: out\nseed: {value}\n"))


def test_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"experiment\.yaml: not readable as YAML"):
        parse("--config", str(path))


def test_error_of_compiled_library_code_keeps_its_traceback() -> None:
    def main() -> None:
        import torch

        torch.zeros(2) + torch.zeros(3)

    with pytest.raises(RuntimeError, match="size of tensor"):
        run_command(main)


def test_mistake_found_inside_an_open_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with open_run(tmp_path / "out", command="eval.run", settings={}), RecordLog(tmp_path / "out" / "r.jsonl"):
            raise ValueError("a mistake")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2 and capsys.readouterr().err == "error: a mistake\n"


def test_mistake_raised_from_a_librarys_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        try:
            json.loads("{")
        except json.JSONDecodeError as error:
            raise ValueError("config.json is not readable") from error

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: config.json is not readable\n"


@pytest.mark.parametrize("text", ["tasks: count", "tasks: [count]"])
def test_one_value_of_a_list_is_read_as_the_flag_reads_it(tmp_path: Path, text: str) -> None:
    from_file, _ = parse("--config", write_config(tmp_path, f"output_dir: out\n{text}\n"))
    from_flag, _ = parse("--output-dir", "out", "--tasks", "count")
    assert from_file == from_flag == Arguments(output_dir="out", tasks=["count"])


def test_a_lists_flag_may_be_repeated_and_overrides_the_file_as_a_whole(tmp_path: Path) -> None:
    config = write_config(tmp_path, "output_dir: out\ntasks: [read]\n")
    arguments, _ = parse("--tasks", "count", "--config", config, "--seed", "2", "--tasks=see", "--tasks", "say", "more")
    assert arguments == Arguments(output_dir="out", seed=2, tasks=["count", "see", "say", "more"])
