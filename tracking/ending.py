"""How does a process end whose command failed or was interrupted? Within seconds, whatever its libraries still do.

    ending = Ending()           # before the libraries are imported
    …
    ending.begin(130)           # the process ends with this status; then return or raise

The interpreter, before it exits, waits for all threads that are not daemons, calls what was registered with `atexit`,
and takes all modules down. vLLM (0.31) prepares a large image in a thread while its engine starts, which no signal
ends; and taking it down takes seconds of processor time, minutes on a busy machine. So threads get a limited time,
registered functions are called as usual, and the rest is left out.
"""

import atexit
import os
import sys
import threading
import time
from contextlib import suppress

PATIENCE_S = 5.0
"""Time for other threads to end."""


class Ending:
    """The end of this process, should its command not succeed."""

    def __init__(self) -> None:
        self._status: int | None = None
        atexit.register(self._exit)  # the first to be registered is the last to be called

    def begin(self, status: int) -> None:
        """Makes this process end with a status; the caller returns or raises next."""
        self._status = status
        watch = threading.Thread(target=self._watch, daemon=True)
        # No public hook is called before the interpreter waits for threads; this one exists in Python 3.11 to 3.14.
        threading._register_atexit(watch.start)  # type: ignore[attr-defined]

    def _watch(self) -> None:
        time.sleep(PATIENCE_S)
        if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
            self._exit()

    def _exit(self) -> None:
        if self._status is not None:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # closed
                    stream.flush()
            os._exit(self._status)
