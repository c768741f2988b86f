"""How do the processes of a distributed run agree? The main one works, and all get its result or error.

An error in only one process would leave the others waiting in their next collective until it times out.
"""

import pickle
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tracking.command import is_main_process

Result = TypeVar("Result")


def is_distributed() -> bool:
    """True if `torch.distributed` is initialised with several processes."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """Returns the number of processes; 1 without `torch.distributed`."""
    if not is_distributed():
        return 1
    import torch.distributed

    return torch.distributed.get_world_size()


def wait_for_all() -> None:
    """Barrier: returns when every process has called it."""
    if is_distributed():
        import torch.distributed

        torch.distributed.barrier()


def on_main_process(work: Callable[[], Result]) -> Result:
    """Calls `work` only in the main process and returns its value in every process.

    Raises:
        Exception: in every process, the exception of the main one (a RuntimeError in the others if it cannot be
            pickled).
    """
    if not is_distributed():
        return work()
    import torch.distributed

    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = work()
        except Exception as error:
            told = error if _can_travel(error) else RuntimeError(f"{type(error).__name__}: {error}")
            torch.distributed.broadcast_object_list([None, told], src=0)
            raise
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def any_process(flag: bool, device: Any) -> bool:
    """Returns True in every process if the flag is True in any of them.

    Args:
        flag: this process's flag.
        device: device of the backend's tensors: the GPU with NCCL, the CPU with gloo.
    """
    if not is_distributed():
        return flag
    import torch

    value = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def _can_travel(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
