"""What is submitted together, on how many GPUs, with which dependencies? Maps the study's jobs to cluster jobs.

Jobs of a stage become one array, in which the same index is the same arm and seed. Within the stages of an arm, a task
waits only for its own predecessor (`aftercorr`), so a failed arm does not delay others. Dependencies on a whole stage
use `afterok`; jobs that collect results (comparison, report) use `afterany`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slurm.planning.cluster import Cluster
from slurm.planning.render import ClusterJob
from slurm.planning.study import INFERENCE, TRAINING, StudyArguments, StudyJob

VLLM_WORDS = (
    "--weight-transfer-config", '{"backend": "nccl"}', "--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs",
    "--enable-scale-out",
)  # fmt: skip
"""Settings that TRL 1.16 requires of a vLLM server (reasons in `configs/frankenstein_3b/grpo.yaml`)."""
TITLES = {
    "train": "Trains every arm with every seed, from the same SFT checkpoint.",
    "evaluate": "Evaluates every arm and seed on the held-out prompts.",
    "evaluate_start": "Evaluates the models that the arms started from.",
    "boundary": "Selects the prompts that the SFT checkpoint answers correctly only sometimes.",
    "train_boundary": "Trains on the selected prompts, with every seed.",
    "evaluate_boundary": "Evaluates what was trained on the selected prompts.",
    "comparison": "Compares the arms that have been evaluated.",
    "splices": "Builds a splice of SFT's and RL's layers for every pattern.",
    "splice_abilities": "Evaluates every splice under the abilities' conditions.",
    "necessity": "Collects the results of the necessity study.",
    "report": "Writes the report from the available results.",
    "tower": "Probes the vision towers on the same pictures.",
    "transfer": "Compares on every modality what was trained on one of them.",
    "statements": "Judges the statements of arXiv 2603.01301.",
    "modalities": "Writes the page: when did RL help?",
    "instruments": "Asks each instrument for known answers.",
    "starts": "Builds the starts of the positive control of freezing.",
    "control": "Trains the arms of the positive control, a study per necessary block.",
    "calibration": "Joins the answers of the instruments on one page.",
}


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A dependency of a job."""

    kind: str
    """afterok, aftercorr or afterany."""
    stage: str
    index: int | None = None
    """One task of an array; None: the whole array."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One submission and its dependencies."""

    job: ClusterJob
    jobs: tuple[StudyJob, ...]
    waits: tuple[Wait, ...]


def make_stages(
    jobs: Sequence[StudyJob], arguments: StudyArguments, cluster: Cluster, *, folder: str, arm_gpus: int, start: str
) -> list[Stage]:
    """Returns the stages in the order of submission.

    Args:
        folder: folder of this launch: scripts, logs, attempts.
        arm_gpus: total number of GPUs per arm.
        start: the checkpoint that a vLLM server loads initially.

    Raises:
        ValueError: if a job does not fit the cluster's nodes.
    """
    grouped: dict[str, list[StudyJob]] = {}
    for job in jobs:
        grouped.setdefault(job.stage, []).append(job)
    by_name = {job.name: job for job in jobs}
    sizes = {name: len(group) for name, group in grouped.items()}
    study = arguments.output_dir.rstrip("/").rpartition("/")[2]
    stages = []
    for name in _in_order(grouped, by_name):
        group = grouped[name]
        kind = group[0].kind
        nodes, gpus, server_gpus = _gpus(kind, arguments, cluster, arm_gpus)
        submission = ClusterJob(
            name=name,
            study=study,
            kind=kind,
            title=TITLES.get(name, f"{name}: {group[0].command[0]}."),
            shape=_shape(nodes, gpus, server_gpus),
            tasks=tuple(sorted(group, key=lambda job: job.index)),
            folder=folder,
            nodes=nodes,
            gpus=gpus,
            server_gpus=server_gpus,
            server_model=start if server_gpus else "",
            server_options=(*VLLM_WORDS, *arguments.vllm_options) if server_gpus else (),
        )
        stages.append(Stage(job=submission, jobs=tuple(group), waits=_waits(group, by_name, sizes)))
    return stages


def _in_order(grouped: Mapping[str, Sequence[StudyJob]], by_name: Mapping[str, StudyJob]) -> list[str]:
    """Returns the stages in dependency order."""
    ordered: list[str] = []
    left = list(grouped)
    while left:
        ready = [
            name
            for name in left
            if all(by_name[other].stage in ordered for job in grouped[name] for other in (*job.needs, *job.after))
        ]
        assert ready, f"stages wait for each other: {left}"
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


def _waits(group: Sequence[StudyJob], by_name: Mapping[str, StudyJob], sizes: Mapping[str, int]) -> tuple[Wait, ...]:
    waits: list[Wait] = []
    needed = {by_name[need].stage for job in group for need in job.needs}
    for stage in sorted(needed, key=list(sizes).index):
        own = [[by_name[need] for need in job.needs if by_name[need].stage == stage] for job in group]
        indices = {other.index for others in own for other in others}
        if sizes[stage] == 1:
            waits.append(Wait(kind="afterok", stage=stage))
        elif len(group) > 1 and [[other.index for other in others] for others in own] == [[job.index] for job in group]:
            waits.append(Wait(kind="aftercorr", stage=stage))
        elif len(indices) == sizes[stage]:
            waits.append(Wait(kind="afterok", stage=stage))
        else:
            waits += [Wait(kind="afterok", stage=stage, index=index) for index in sorted(indices)]
    for stage in sorted({by_name[other].stage for job in group for other in job.after} - needed, key=list(sizes).index):
        indices = {by_name[other].index for job in group for other in job.after if by_name[other].stage == stage}
        if len(indices) == sizes[stage]:
            waits.append(Wait(kind="afterany", stage=stage))
        else:
            waits += [Wait(kind="afterany", stage=stage, index=index) for index in sorted(indices)]
    return tuple(waits)


def _gpus(kind: str, arguments: StudyArguments, cluster: Cluster, arm_gpus: int) -> tuple[int, int, int]:
    """Returns the number of nodes, GPUs per node for the processes, and GPUs of a vLLM server."""
    if cluster.gpus_per_node == 0:
        if arguments.vllm_gpus and kind == "arm":
            raise ValueError("vllm_gpus is given, but the cluster has no GPUs; leave it out")
        return arguments.arm_nodes if kind == "arm" else 1, 0, 0
    if arguments.arm_nodes > 1:
        raise ValueError(f"arm_nodes is {arguments.arm_nodes}, but the cluster has GPUs; expected arm_gpus instead")
    if kind in INFERENCE:
        wanted, server = arguments.probe_gpus, 0
    elif kind in TRAINING:
        wanted, server = arm_gpus, arguments.vllm_gpus if kind == "arm" else 0
    else:
        return 1, 0, 0
    if wanted + server <= cluster.gpus_per_node:
        return 1, wanted, server
    if server:
        raise ValueError(
            f"{wanted} GPUs for training and {server} for vLLM do not fit a node of {cluster.gpus_per_node}; lower one "
            "of them, or leave vllm_gpus out, so that vLLM shares the GPUs of the trainers"
        )
    if wanted % cluster.gpus_per_node:
        raise ValueError(f"{wanted} GPUs do not fill whole nodes of {cluster.gpus_per_node}; expected a multiple")
    return wanted // cluster.gpus_per_node, cluster.gpus_per_node, 0


def _shape(nodes: int, gpus: int, server_gpus: int) -> str:
    if server_gpus:
        return "vllm"
    if nodes > 1:
        return "nodes"
    return "cpu" if gpus == 0 else "process" if gpus == 1 else "node"
