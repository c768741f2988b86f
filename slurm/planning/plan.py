"""Which jobs does a study consist of? The necessity study's jobs, and the probes, splices and tables.

Read from `study.yaml` and from `python -m train.necessity --plan-json`; each job is a command of the suite with its own
output directory below the study's:

    necessity/        data, models, arms and evaluations of train.necessity
    pairs/, swap/, skip/, attention/, deltas/           the probes
    descriptions/, abilities/, samples/, support/       abilities of each model, greedy and with many samples
    splices/, splice_abilities/, splice_comparison/     effect of each part of the model in splices
    claims/, report.html                                the paper's claims, and the report
    tower/, transfer/, statements/, modalities/         the comparison of modalities (`modalities.py`)

A job *needs* other jobs if it cannot run without them. It comes *after* others if it uses whichever of them succeeded,
through `slurm.gather`, which leaves out and reports failed ones.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.planning.modalities import PAGE, STATEMENTS, SUPPORT, TOWER, TRANSFER, modality_jobs
from slurm.planning.study import KINDS, OWN_PROMPTS, SPLICES, TRAINING, StudyArguments, StudyJob, split_task
from tracking.command import did_you_mean, read_yaml

DATA_DIR = "data"
"""Folder of the product in the output directory of `data_builders.build`."""
EVALUATION_OPTIONS = {"--config", "--model", "--tasks", "--output_dir"}
"""Options of the evaluations of `train.necessity`; with others, their replies are not reused."""


def plan_study(arguments: StudyArguments, necessity: dict[str, Any]) -> list[StudyJob]:
    """Returns all jobs of the study in dependency order."""
    return _Plan(arguments, necessity).all()


def _without_conditions(config: str) -> dict[str, Any]:
    """Returns the settings of an `eval.run` configuration that affect a reply to a picture as given."""
    chosen = ("abilities", "conditions", "descri")  # describe_model, descriptions, …
    return {name: value for name, value in read_yaml(Path(config)).items() if not name.startswith(chosen)}


class _Plan:
    def __init__(self, arguments: StudyArguments, necessity: dict[str, Any]) -> None:
        self.arguments = arguments
        self.necessity = necessity
        self.out = arguments.output_dir
        self.jobs: dict[str, StudyJob] = {}
        self.runs: list[dict[str, Any]] = necessity["runs"]
        self.labels = [run["label"] for run in self.runs]
        self.bounded = {job["name"] for job in necessity["jobs"] if job["kind"] == "arm" and "boundary" in job["needs"]}
        """Labels of the runs on the prompts that eval.boundary keeps."""
        self.cut = ("--cuts", *map(str, necessity["cuts"])) if necessity["cuts"] else (
            "--partition", necessity["partition"],
        )  # fmt: skip
        self.sampled = self._sampled()
        self.prompts_job = "prompts" if arguments.prompts else "data"

    def all(self) -> list[StudyJob]:
        arguments = self.arguments
        assert arguments.necessity is not None
        if arguments.prompts:
            self._add_prompts(arguments.prompts)
        for position, text in enumerate(arguments.pairs):
            self._add_pairs(position, *split_task(text))
        for job in self.necessity["jobs"]:
            self._add_necessity(job)
        self._add(
            "necessity", ("train.necessity", "--config", arguments.necessity, "--collect", "true"),
            after=[job["name"] for job in self.necessity["jobs"]],
        )  # fmt: skip
        if arguments.described:
            command = ("data_builders.pocket_descriptions", "--data", self.necessity["prompts"])
            self._add("descriptions", (*command, "--split", arguments.described), needs=[self.prompts_job])
        if arguments.abilities:
            self._add_evaluations("abilities", arguments.abilities, arguments.tasks)
            self._add_comparison("ability_comparison", self._models("abilities"), "abilities")
        if arguments.samples:
            self._add_evaluations("samples", arguments.samples, arguments.sample_tasks)
            by = ("--by", arguments.by) if arguments.by else ()
            k = ("--k", str(arguments.support_k)) if arguments.support_k else ()
            self._add_gathering(SUPPORT, ("eval.support", *self._models("samples"), *by, *k), self._named("samples"))
        if arguments.tower:
            self._add_tower(arguments.tower)
        if arguments.by:
            self._add_modalities()
        if arguments.swap:
            for model in self._probed():
                self._add_swap(arguments.swap, model)
        if arguments.skip:
            for model in self._probed():
                self._add_skip(arguments.skip, model)
        if arguments.attention:
            self._add_attention(arguments.attention)
        if arguments.deltas:
            self._add_deltas(arguments.deltas)
        if arguments.splices:
            self._add_splices(SPLICES[arguments.splices])
        if arguments.claims:
            self._add_claims(arguments.claims)
        self._add_report()
        return list(self.jobs.values())

    def _add(
        self,
        name: str,
        command: Sequence[str],
        *,
        kind: str | None = None,
        stage: str | None = None,
        index: int = 0,
        directory: str | None = None,
        needs: Sequence[str] = (),
        after: Sequence[str] = (),
        launcher: Sequence[str] = ("python", "-m"),
    ) -> None:
        """Adds a job; dependencies that the study does not run are dropped."""
        assert name not in self.jobs and (kind or name) in KINDS, (name, kind)
        place = directory or f"{self.out}/{name}"
        flag = () if command[0] == "analyze.report" or "--output_dir" in command else ("--output_dir", place)
        self.jobs[name] = StudyJob(
            name=name,
            kind=kind or name,
            stage=stage or name,
            index=index,
            command=(*command, *flag),
            output_dir=place,
            needs=tuple(need for need in dict.fromkeys(needs) if need in self.jobs),
            after=tuple(other for other in dict.fromkeys(after) if other in self.jobs),
            launcher=tuple(launcher),
        )

    def _add_prompts(self, text: str) -> None:
        task, config = split_task(text)
        folder = Path(self.necessity["prompts"])
        if any(job["name"] == "data" for job in self.necessity["jobs"]):
            raise ValueError(f"prompts is {text}, but {self.arguments.necessity} builds its own; leave it out")
        if folder.name != DATA_DIR:
            raise ValueError(
                f"{self.arguments.necessity} reads {folder}; expected a folder …/{DATA_DIR}, as it is built"
            )
        command = ("data_builders.build", task, "--config", config)
        self._add("prompts", command, kind="data", directory=str(folder.parent))

    def _add_pairs(self, position: int, task: str, config: str) -> None:
        name = Path(config).stem if Path(config).stem != "pairs" else task
        if f"pairs-{name}" in self.jobs:
            raise ValueError(f"pairs names two sets {name!r}; give their files different names")
        command = ("data_builders.build", task, "--config", config)
        self._add(
            f"pairs-{name}", command, kind="pairs", stage="pairs", index=position, directory=f"{self.out}/pairs/{name}"
        )

    def _add_necessity(self, job: dict[str, Any]) -> None:
        """Adds a job of the necessity study."""
        name, kind, argv, index = job["name"], job["kind"], job["argv"], 0
        if "-m" not in argv:
            raise ValueError(f"{shlex.join(argv)} starts no module; expected a launcher that ends with -m")
        cut = argv.index("-m") + 1
        stage = name
        if kind in ("arm", "eval"):
            label = name.removeprefix("eval-")
            trained = label in self.labels
            index = self.labels.index(label) if trained else ("base", "sft").index(label)
            stage = "train" if kind == "arm" else "evaluate" if trained else "evaluate_start"
            if label in self.bounded:  # arrays of their own: the others do not wait for a selection, which may fail
                stage += "_boundary"
        gathers = kind in ("compare", "deltas")
        waits = [
            *job["needs"],
            *([] if gathers else [self.prompts_job] if kind in (*TRAINING, "boundary", "eval") else []),
        ]
        command = self._gathered(name, argv[cut:]) if gathers else argv[cut:]
        self._add(
            name, command, kind=kind, stage=stage, index=index, directory=job["output_dir"],
            needs=() if gathers else waits, after=waits if gathers else (), launcher=argv[:cut],
        )  # fmt: skip

    def _gathered(self, name: str, command: Sequence[str]) -> tuple[str, ...]:
        return ("slurm.gather", "--study", self.out, "--name", name, *command)

    def _add_gathering(self, name: str, command: Sequence[str], after: Sequence[str], kind: str | None = None) -> None:
        """Adds a job that uses the existing inputs."""
        self._add(name, self._gathered(name, command), kind=kind, after=after)

    def _phases(self) -> list[str]:
        return list(self.necessity["checkpoints"])

    def _checkpoint(self, model: str) -> str:
        """Returns the checkpoint of a phase or a run."""
        phases: dict[str, str] = self.necessity["checkpoints"]
        return phases.get(model) or f"{self.out}/necessity/arms/{model}/final"

    def _entry(self, model: str) -> str:
        """Returns a model's name for eval.compare: NAME or NAME@SEED."""
        if model not in self.labels:
            return model
        run = self.runs[self.labels.index(model)]
        return f"{run['arm']}@{run['seed']}"

    def _sampled(self) -> list[str]:
        """Returns the labels of the runs that answer `samples`.

        Arms of further SFT are compared by their greedy replies; many samples are about what RL sharpens.
        """
        named, arms = self.arguments.sampled, list(dict.fromkeys(run["arm"] for run in self.runs))
        for arm in named:
            if arm not in arms:
                raise ValueError(f"sampled {arm!r} is no arm of the study{did_you_mean(arm, arms)}")
        chosen = named or [arm for arm in arms if not (self.arguments.by and arm.startswith("sft-"))]
        return [run["label"] for run in self.runs if run["arm"] in chosen]

    def _asked(self, kind: str) -> list[str]:
        """Returns the phases and runs that are evaluated, for pass@k or for the abilities."""
        return [*self._phases(), *(self.sampled if kind == "samples" else self.labels)]

    def _models(self, folder: str) -> list[str]:
        return [f"{self._entry(model)}={self.out}/{folder}/{model}" for model in self._asked(folder)]

    def _named(self, folder: str) -> list[str]:
        return [f"{folder}-{model}" for model in self._asked(folder)]

    def _place(self, model: str) -> tuple[bool, int]:
        """Returns a sort key: whether a model is a run, and its position."""
        trained = model in self.labels
        return trained, self.labels.index(model) if trained else self._phases().index(model)

    def _probed(self) -> list[str]:
        """Returns the probed phases and runs."""
        seed = self.runs[0]["seed"]
        first = {run["arm"]: run["label"] for run in self.runs if run["seed"] == seed}
        known = {**{phase: phase for phase in self._phases()}, **first}
        models = list(known) if self.arguments.probed == ["all"] else self.arguments.probed
        for model in models:
            if model not in known:
                raise ValueError(f"probed {model!r} is not a model of the study{did_you_mean(model, known)}")
        if len(set(models)) < len(models):
            raise ValueError(f"probed is {', '.join(models)}; expected each model once")
        return [known[model] for model in models]

    def _rl(self) -> str:
        """Returns the run used as RL."""
        for run in self.runs:
            if run["arm"] == self.arguments.arm:
                return str(run["label"])
        arms = list(dict.fromkeys(run["arm"] for run in self.runs))
        raise ValueError(
            f"arm {self.arguments.arm!r} is none of {', '.join(arms)}{did_you_mean(self.arguments.arm, arms)}"
        )

    def _tasks(self, tasks: Sequence[str]) -> list[str]:
        own = f"{OWN_PROMPTS}:"
        return [
            f"{self.necessity['prompts']}:{task.removeprefix(own)}" if task.startswith(own) else task for task in tasks
        ]

    def _add_evaluations(self, kind: str, config: str, tasks: Sequence[str]) -> None:
        for model in self._asked(kind):
            trained, index = self._place(model)
            reused = self._reused(config, model, tasks)
            self._add_evaluation(
                f"{kind}-{model}", kind, config, self._checkpoint(model), tasks, needs=[model, *reused], index=index,
                stage=kind if trained else f"{kind}_start", directory=f"{self.out}/{kind}/{model}", reused=reused,
            )  # fmt: skip

    def _reused(self, config: str, model: str, tasks: Sequence[str]) -> list[str]:
        """Returns the evaluations whose replies another one of the same model can take over: same task and settings."""
        job = self.jobs.get(f"eval-{model}")
        if job is None or {word for word in job.command if word.startswith("--")} != EVALUATION_OPTIONS:
            return []
        (own,) = job.words_after("--config")
        same = _without_conditions(own) == _without_conditions(config)
        return [job.name] if same and set(job.words_after("--tasks")) & set(self._tasks(tasks)) else []

    def _add_evaluation(
        self, name: str, kind: str, config: str, model: str, tasks: Sequence[str], *, needs: Sequence[str],
        reused: Sequence[str] = (), **place: Any,
    ) -> None:  # fmt: skip
        """Adds a model's evaluations; `abilities` with descriptions, if the study makes them."""
        command = ["eval.run", "--config", config, "--model", model, "--tasks", *self._tasks(tasks)]
        needs = [self.prompts_job, *needs]
        if kind == "abilities" and self.arguments.described:
            command += ["--descriptions", f"{self.out}/descriptions/descriptions.jsonl"]
            needs.append("descriptions")
        if reused:
            command += ["--reuse", *(self.jobs[name].output_dir for name in reused)]
        self._add(name, command, kind=kind, needs=needs, **place)

    def _add_comparison(self, name: str, models: Sequence[str], folder: str) -> None:
        roles = ["--baseline", "sft"]
        arms = {run["arm"] for run in self.runs}
        roles += next((["--reference", name] for name in ("full", "data-all") if name in arms), [])
        self._add_gathering(name, ("eval.compare", *models, *roles), self._named(folder), kind="compare")

    def _add_probe(self, kind: str, model: str, command: Sequence[str], needs: Sequence[str]) -> None:
        trained, index = self._place(model)
        self._add(
            f"{kind}-{model}", (*command, *self.cut), kind=kind,
            stage=kind if trained else f"{kind}_start", index=index, directory=f"{self.out}/{kind}/{model}",
            needs=[*needs, model],
        )  # fmt: skip

    def _add_swap(self, config: str, model: str) -> None:
        pairs = [job for job in self.jobs.values() if job.kind == "pairs"]
        folders = [f"{job.output_dir}/{DATA_DIR}" for job in pairs]
        command = ("analyze.swap", "--config", config, "--model", self._checkpoint(model), "--pairs", *folders)
        self._add_probe("swap", model, command, [job.name for job in pairs])

    def _add_skip(self, config: str, model: str) -> None:
        command = ("analyze.skip", "--config", config, "--model", self._checkpoint(model), "--tasks")
        self._add_probe("skip", model, (*command, *self._tasks(self.arguments.skip_tasks)), [self.prompts_job])

    def _add_attention(self, config: str) -> None:
        models = self._probed()
        entries = [f"{self._entry(model)}={self._checkpoint(model)}" for model in models]
        command = ("analyze.attention", "--config", config, "--models", *entries)
        tasks = ("--tasks", *self._tasks(self.arguments.attention_tasks))
        self._add_gathering("attention", (*command, *tasks, *self.cut), [self.prompts_job, *models])

    def _add_tower(self, config: str) -> None:
        models = self._probed()
        names = {run["label"]: run["arm"] for run in self.runs}
        entries = [f"{names.get(model, model)}={self._checkpoint(model)}" for model in models]
        command = ("eval.tower", "--config", config, "--model", *entries)
        self._add_gathering(TOWER, command, [self.prompts_job, *models])

    def _add_modalities(self) -> None:
        asked = {label: f"eval-{label}" for label in ("sft", *self.labels)}
        places = {label: self.jobs[name].output_dir for label, name in asked.items() if name in self.jobs}
        for job in modality_jobs(self.arguments, self.runs, places):
            self._add_gathering(job.name, job.command, job.after)
        self._add(PAGE, ("analyze.modalities", self.out), after=(SUPPORT, TOWER, TRANSFER, STATEMENTS))

    def _add_deltas(self, config: str) -> None:
        base = ("--base", self._checkpoint("base")) if "base" in self._phases() else ()
        ends = [f"{self._entry(model)}={self._checkpoint(model)}" for model in self._probed() if model in self.labels]
        if not ends:
            raise ValueError(f"deltas is given, but probed, {', '.join(self._probed())}, has no arm; add one")
        command = ("analyze.deltas", "--config", config, *base, "--sft", self._checkpoint("sft"), "--rl", *ends)
        after = ["base", "sft", *(model for model in self._probed() if model in self.labels)]
        name = "all_deltas"
        self._add(name, self._gathered(name, (*command, *self.cut)), kind="deltas", after=after)

    def _add_splices(self, patterns: Sequence[str]) -> None:
        arguments, rl = self.arguments, self._rl()
        donors = (f"in={self._checkpoint('sft')}", f"rl={self._checkpoint(rl)}")
        command = (
            "merge.all",
            "--patterns",
            str(arguments.splices),
            "--donor",
            *donors,
            "--rest",
            *arguments.splice_rest,
        )
        self._add("splices", (*command, *self.cut), needs=["sft", rl])
        for index, pattern in enumerate(patterns):
            self._add_evaluation(
                f"splice-{pattern}", "abilities", str(arguments.abilities), f"{self.out}/splices/{pattern}/checkpoint",
                arguments.tasks, needs=["splices"], stage="splice_abilities", index=index,
                directory=f"{self.out}/splice_abilities/{pattern}",
            )  # fmt: skip
        unmixed = [f"{name}={self.out}/abilities/{model}" for name, model in (("in", "sft"), ("rl", rl))]
        base = [f"base={self.out}/abilities/base"] if "base" in self._phases() else []
        mixed = [
            f"{pattern}={self.out}/splice_abilities/{pattern}"
            for pattern in patterns
            if len(set(pattern.split("-"))) > 1
        ]
        after = [
            *(f"abilities-{model}" for model in ("base", "sft", rl)),
            *(f"splice-{pattern}" for pattern in patterns),
        ]
        command = ("eval.compare", *base, *unmixed, *mixed, "--baseline", "in", "--reference", "rl")
        self._add_gathering("splice_comparison", command, after, kind="compare")

    def _add_claims(self, recipe: str) -> None:
        prefix = "" if recipe == "own" else f"{recipe}="
        sources = ("ability_comparison", "splice_comparison")  # the first has precedence, since it has all seeds
        scores = [f"{prefix}{self.out}/{name}/scores.csv" for name in sources]
        self._add_gathering("claims", ("eval.claims", "--scores", *scores), sources)

    def _add_report(self) -> None:
        command = ("analyze.report", self.out, "--output", f"{self.out}/report.html")
        self._add("report", command, directory=f"{self.out}/report.html", after=list(self.jobs))
