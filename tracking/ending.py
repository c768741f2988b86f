"""How does a process end whose command failed or was interrupted? Within seconds, whatever its libraries still do.

    end_process(130)            # does not return

The interpreter, before it exits, waits for all threads that are not daemons, calls what was registered with `atexit`,
and takes all modules down. vLLM (0.31) prepares a large image in a thread while its engine starts, which no signal
ends; and taking it down needs seconds of processor time, which are minutes on a busy machine. So threads get a limited
time, registered functions are called as usual, and the rest is left out.
"""

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

PATIENCE_S = 5.0
"""Time for other threads to end."""


def end_process(status: int) -> NoReturn:
    """Ends this process as the interpreter does, but for threads that run on and objects that nobody needs.

    The two private functions are what the interpreter itself calls, in Python 3.11 to 3.14.
    """
    threading.Thread(target=_leave_threads, args=(status,), daemon=True).start()
    with suppress(KeyboardInterrupt):  # whoever interrupts again does not want to wait
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    _exit(status)


def _leave_threads(status: int) -> None:
    time.sleep(PATIENCE_S)
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        _exit(status)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(status)
