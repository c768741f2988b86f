"""Every command of the README, the tutorial and the guides runs as it is written, on a reduced pocket study."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, Command, blocks, commands, shape
from tests.docs.workplace import make_workplace, run_pocket, working_directory
from tracking.command import REPOSITORY_ROOT, ArgumentsTaken, arguments_only, command_module, run_command

TRAINING = ("train.grpo", "train.sft")
ON_A_CPU = ["--use_cpu", "true", "--bf16", "false"]
"""Without them, settings for GPUs are refused on a machine without one."""
MAKEFILE = (REPOSITORY_ROOT / "Makefile").read_text()


def ids(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which `make pocket` has run, reduced."""
    directory = make_workplace(tmp_path_factory.mktemp("workplace"))
    run_pocket(directory)
    return directory


@pytest.fixture
def inside(workplace: Path, warm_python: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, entered; its modules can be imported, and child processes run this checkout's code."""
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY_ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    monkeypatch.setattr(sys, "executable", str(warm_python))
    monkeypatch.setattr("slurm.launch.REPOSITORY_ROOT", workplace)
    with working_directory(workplace):
        yield workplace


def expand(command: Command) -> list[str]:
    """Returns the arguments of a command of this suite as the shell hands them over."""
    start = f"-m {command.module}"
    words = command.text[command.text.index(start) + len(start) :]
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, text=True, check=True)
    return told.stdout.split("\0")[:-1]


def run(command: Command) -> int:
    """Runs a command and returns its exit status; those of this suite run in this process."""
    if command.words[0] != "python" or command.module is None:
        return subprocess.run(["bash", "-ec", command.text], check=False).returncode
    main, arguments = command_module(command.module).main, expand(command)
    try:
        run_command(lambda: main(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _module_of(name: str) -> Any:
    """Returns the module with `main`: of a folder its `command`, or its `__main__` if it has no `command`."""
    try:
        return command_module(name)
    except ModuleNotFoundError:
        return import_module(f"{name}.__main__")


def check_arguments(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a command that is not run here would refuse its arguments, or does not exist."""
    if command.words[0] == "make":
        for target in command.words[1:]:
            assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"make knows no {target}"
        return
    assert command.module is not None, f"{command.page}: nothing checks {command.text}"
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *words: Any) -> None:
        parse(parser, *words)
        raise ArgumentsTaken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    here = ON_A_CPU if command.module in TRAINING else []
    module = _module_of(command.module)
    with arguments_only(), pytest.raises(ArgumentsTaken):
        module.main([*expand(command), *here])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_run_as_they_are_written_and_print_what_is_shown(
    page: Path, inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert commands(page), f"{page.name} shows no command"
    printed: set[str] = set()
    for command in commands(page):
        if command.only_checked:
            check_arguments(command, monkeypatch)
            continue
        status = run(command)
        said = "".join(capfd.readouterr())
        assert status == command.status, f"exit status {status} of\n{command.text}\n{said}"
        printed |= {shape(line) for line in said.splitlines()}
    shown = [line for block in blocks(page, "text") for line in block.splitlines() if line]
    missing = [line for line in shown if shape(line) not in printed]
    assert not missing, f"{page.name} shows what no command printed"
