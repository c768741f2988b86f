"""How do the processes of one distributed run agree? One works, all learn the outcome, errors included.

An error that only one process saw would leave the others waiting in their next collective until its timeout.
"""

import pickle
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tracking.command import is_main_process

Result = TypeVar("Result")


def is_distributed() -> bool:
    """True where several processes have found each other (`torch.distributed` is initialised)."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """Returns how many processes train together; 1 where `torch.distributed` is not in use."""
    if not is_distributed():
        return 1
    import torch.distributed

    return torch.distributed.get_world_size()


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if is_distributed():
        import torch.distributed

        torch.distributed.barrier()


def on_main_process(work: Callable[[], Result]) -> Result:
    """Calls `work` in the main process alone and returns its value in every process.

    Raises:
        Exception: in every process, what `work` raised in the main one (in the others a RuntimeError where that cannot
            be pickled).
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
    """Returns True in every process where it is True in one of them.

    Args:
        flag: this process's own.
        device: where the backend wants its tensors: the GPU with NCCL, the CPU with gloo.
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
