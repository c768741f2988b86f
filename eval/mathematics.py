"""Are two mathematical expressions equal? math-verify, in a process of its own that ends with its time.

Some expressions (`9^{9^{9^{9}}}`) never end inside one call that no Python time limit can interrupt. So the child asks
the kernel to end it (SIGALRM at its default), and the next question gets a new child.
"""

import json
import resource
import signal
import subprocess
import sys

from tracking.command import REPOSITORY_ROOT

LIMIT_S = 5.0
MEMORY_BYTES = 4 * 2**30

_child: "subprocess.Popen[str] | None" = None


def equal_expressions(answer: str, gold: str) -> bool | None:
    """Returns whether two expressions are equal; None where the gold does not parse or the time is up."""
    global _child
    if _child is None or _child.poll() is not None:
        _child = subprocess.Popen(
            [sys.executable, "-m", "eval.mathematics"],
            cwd=REPOSITORY_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    assert _child.stdin is not None
    assert _child.stdout is not None
    _child.stdin.write(json.dumps([answer, gold]) + "\n")
    _child.stdin.flush()
    line = _child.stdout.readline()
    if not line:
        _child.wait()
        return None
    verdict: bool | None = json.loads(line)
    return verdict


def _judge(answer: str, gold: str) -> bool | None:
    from math_verify import parse, verify

    def wrap(text: str) -> str:
        return text if text.strip().startswith("$") else f"${text}$"

    parsed_gold = parse(wrap(gold), parsing_timeout=None)
    if not parsed_gold:
        return None
    parsed = parse(wrap(answer), parsing_timeout=None)
    return bool(verify(parsed_gold, parsed, timeout_seconds=None)) if parsed else False


def main() -> None:
    """Judges one pair a line until the asker goes away."""
    import math_verify  # noqa: F401  (before the clock runs)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            verdict = _judge(*json.loads(line))
        except (MemoryError, RecursionError):
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
