"""Which collectives does DeepSpeed use on CPUs? Those of torch (gloo), not its own over shared memory.

DeepSpeed (0.19.8) compiles its shared-memory operator in the first run of an environment: about a minute on two cores,
with a C++ compiler. Training never calls it; only DeepSpeed's inference does (`inference_all_reduce`).
"""

import os


def skip_shared_memory() -> None:
    """Marks DeepSpeed's shared-memory operator as unavailable, if DeepSpeed is to run on CPUs (`DS_ACCELERATOR=cpu`).

    To be called before the process group exists. DeepSpeed keeps one table of operators and asks it (`build_shm_op`).
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
