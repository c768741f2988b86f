"""Keeps steps of a run as changes against its start: one file per kept step, written while training waits.

What is kept is what `final/` would hold had training stopped after the step: in the start's dtypes, rounded once from
the weights in memory, or from the fp32 masters where the start stores fp32 among other dtypes. The processes gather one
tensor at a time (ZeRO-3), and the main one writes it.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merge.trajectories.store import StepWriter, TrajectoryWriter
from models.checkpoint import Checkpoint
from models.shards import DTYPES
from tracking.processes import on_main_process
from train.freezing.engine import zero_stage
from train.freezing.float32 import trained_masters

if TYPE_CHECKING:
    import torch


class KeepTrajectory(TrainerCallback):
    """Keeps the weights after every `every` steps and after the last."""

    def __init__(
        self,
        trainer: Trainer,
        start: Checkpoint,
        trainable: Iterable[str],
        writer: TrajectoryWriter | None,
        *,
        every: int,
    ) -> None:
        """Args:
        trainer: its model's parameters have canonical names.
        start: the checkpoint that the run began from.
        trainable: names of the parameters that train.
        writer: the main process's.
        every: number of steps between two kept ones.
        """
        self._trainer, self._start, self._writer, self._every = trainer, start, writer, every
        self._trainable = frozenset(trainable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        parameters = {
            name: parameter for name, parameter in self._trainer.model.named_parameters() if name in self._trainable
        }
        masters = trained_masters(self._trainer, self._start)
        step: list[StepWriter] = []
        """The main process's; other processes have none."""
        errors: list[Exception] = []
        """The main process's first error. It is raised at the end, where it ends all processes."""

        def begin() -> None:
            assert self._writer is not None
            step.append(self._writer.open_step(state.global_step, parameters))

        def end() -> None:
            assert self._writer is not None
            if errors:
                raise errors[0]
            self._writer.close_step(step[0])

        on_main_process(begin)
        for name, parameter in parameters.items():
            with _gathered(parameter, stage=zero_stage(args)):
                if step and not errors:
                    try:
                        step[0].add(name, self._content(name, parameter, masters))
                    except Exception as error:
                        errors.append(error)
        on_main_process(end)

    def _content(self, name: str, parameter: Any, masters: "Mapping[str, torch.Tensor]") -> memoryview:
        """Returns a parameter's bytes in the start's dtype."""
        import torch

        value = masters[name] if name in masters else parameter.detach().to("cpu", copy=True)
        dtype = getattr(torch, DTYPES[self._start.tensors[name].dtype][0])
        content: memoryview = value.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data
        return content


def _gathered(parameter: Any, *, stage: int) -> AbstractContextManager[Any]:
    """Returns a context in which every process has the whole parameter."""
    if stage != 3:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter])
    return context
