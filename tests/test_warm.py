"""The warm parent of test processes: its children end as ordinary processes do, with whoever asked for them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ENDS = {
    "well": ("print('said')", 0),
    "a status": ("raise SystemExit(75)", 75),
    "a message": ("raise SystemExit('a mistake')", 1),
    "an error": ("raise KeyError('lost')", 1),
    "a signal": ("import os; os.kill(os.getpid(), 11)", -11),
}


def test_a_child_ends_as_an_ordinary_process_does(warm_python: Path, tmp_path: Path) -> None:
    for name, (program, status) in ENDS.items():
        file = tmp_path / "program.py"
        file.write_text(program)
        seen = [
            subprocess.run([python, file], capture_output=True, text=True, check=False, cwd=tmp_path)
            for python in (warm_python, sys.executable)
        ]
        assert [done.returncode for done in seen] == [status, status], name
        assert seen[0].stdout == seen[1].stdout, name
        assert seen[0].stderr.splitlines()[-1:] == seen[1].stderr.splitlines()[-1:], name


def test_a_child_has_the_arguments_directory_environment_and_input_it_was_given(
    warm_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "shows.py").write_text(
        "import os, sys, torch\n"
        "print(sys.argv[1:], os.getcwd(), sys.path[0], __name__, torch.get_num_threads())\n"
        "print(os.environ.get('HELD'), 'PATH' in os.environ, sys.stdin.read())\n"
    )
    told = {"HELD": "a b", "OMP_NUM_THREADS": "2"}
    seen = [
        subprocess.run(
            [python, "-m", "shows", "--x", "ü ' \""], input="in", capture_output=True, text=True, check=True,
            cwd=tmp_path, env=told,
        ).stdout
        for python in (warm_python, sys.executable)
    ]  # fmt: skip
    assert seen[0] == seen[1] and "a b False in" in seen[0]


def test_a_program_given_as_text_is_warm_where_it_imports_a_library(warm_python: Path, tmp_path: Path) -> None:
    shows = "import sys; print(__name__, sys.argv, repr(sys.path[0]), 'pandas' in sys.modules)"
    for program, is_warm in ((f"import torch; {shows}", True), (shows, False)):
        words = ["-c", program, "a b"]
        seen = [
            subprocess.run([python, *words], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
            for python in (warm_python, sys.executable)
        ]
        assert seen == [f"__main__ ['-c', 'a b'] '' {loaded}\n" for loaded in (is_warm, False)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_the_process_in_front_of_it(
    number: signal.Signals, warm_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "sleeps.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)\n")
    with subprocess.Popen([warm_python, tmp_path / "sleeps.py"], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        child = psutil.Process(int(front.stdout.readline()))
        front.send_signal(number)
        assert front.wait(10) == -number
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_server_the_real_interpreter_runs(warm_python: Path, tmp_path: Path) -> None:
    orphan = tmp_path / "python"
    text = warm_python.read_text()
    name = next(word for word in text.replace("'", " ").split() if word.startswith("frankenstein-"))
    orphan.write_text(text.replace(name, "frankenstein-nobody"))
    orphan.chmod(0o755)
    (tmp_path / "shows.py").write_text("import sys\nprint('torch' in sys.modules, sys.executable)\n")
    done = subprocess.run([orphan, tmp_path / "shows.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", sys.executable]
