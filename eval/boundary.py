"""Which prompts does this model answer correctly only sometimes? Selects prompts by pass rate over sampled replies.

    python -m eval.boundary --model CHECKPOINT --data outputs/rl/data --split rl --num-samples 8 --output-dir D

GRPO learns nothing from a prompt whose replies are all right or all wrong. Each prompt is therefore answered
`num_samples` times, the replies are graded as in training, and the prompts whose pass rate lies in the band form a new
prompt set: `D/data`, with the same split, order, ids and images. By default the band is 0 < rate < 1; `--band LOW HIGH`
keeps LOW <= rate < HIGH, so `--band 0 1` keeps prompts that never succeed and drops those that always do.
`--replies EARLIER` reuses the replies of an earlier run, for another band or more samples; only missing ones are drawn.

D/records.jsonl    one record per reply
D/rates.csv        per prompt: number n of judged replies, pass rate with Wilson interval, num_unscored
D/summary.csv      per ability: number of prompts that never, sometimes and always succeed, and number kept
D/balance.csv      with --balance, per cell: prompts, those in the band, and those kept

`--balance modality,class` keeps the same number of prompts of each modality and class (fields of the prompts' `meta`;
without a class, the answer): as many as the rarest cell has in the band, or `--per-cell N`. Cells without a prompt in
the band are reported. Among the prompts in the band, seed and id decide which are kept. Their order is that of the
file; with `--curriculum` the easiest come first, for training with `shuffle: false`.

Each reply has its own seed, derived from the seed, the prompt's id and the sample number. Replies that cannot be judged
count neither as right nor as wrong; prompts without any judged reply are dropped and counted.

Known limits: a rate over 8 replies is imprecise (see its interval), and because prompts are selected by it, the true
rates of the kept prompts are on average closer to 0 or 1. One process on one GPU.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data_builders.build import DATA_DIR, write_manifest
from data_builders.prompt_sets.balance import Cell, balance_prompts, cell_lines, cell_table
from data_builders.prompt_sets.fields import check_field
from data_builders.prompt_sets.images import place_file
from data_builders.prompt_sets.prompts import (
    Prompt,
    check_folder,
    check_split,
    prompts_fingerprint,
    read_prompts,
    write_prompts,
)
from eval.grading import CORRECT, UNSCORED
from eval.replies.answering import graded
from eval.replies.pictures import answer_spaces, pixel_limits
from eval.replies.prompting import MAX_TOKENS_ARGUMENT, STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.replies.sampling import SeededSampler, reply_seed
from eval.replies.subject import Subject, check_subject, open_subject
from eval.statistics.intervals import wilson
from models.adapters.opening import BASE_ARGUMENT
from models.loading import ATTENTION_ARGUMENT, DTYPE_ARGUMENT
from tracking.command import check_all, check_least, parse_arguments, run_command
from tracking.product import partial_directory
from tracking.progress import progress, say
from tracking.records import Record, RecordLog, read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run, read_run
from tracking.tables import format_columns, write_table

if TYPE_CHECKING:
    import pandas as pd

CHOICE = ("balance", "per_cell", "curriculum")
"""Settings of the choice among the prompts in the band; they do not affect the replies."""


@dataclass(frozen=True, kw_only=True)
class BoundaryArguments:
    """The model, the prompts, and which of them are kept."""

    model: str = field(
        metadata={"help": "a checkpoint's folder, a hub id, or the .yaml of a splice's recipe", "check": check_subject}
    )
    data: str = field(metadata={"help": "folder of the prompt set", "check": check_folder})
    output_dir: str = field(metadata={"help": "where records, rates and the new prompt set are written"})
    base: str | None = field(default=None, metadata=BASE_ARGUMENT)
    split: str = field(default="rl", metadata={"help": "split of the prompt set"})
    limit: int | None = field(default=None, metadata={"help": "use only the first N prompts"})
    num_samples: int = field(default=8, metadata={"help": "replies per prompt"})
    band: list[float] = field(
        default_factory=list,
        metadata={
            "help": "LOW HIGH: keep prompts with LOW <= pass rate < HIGH; by default those with 0 < pass rate < 1"
        },
    )
    balance: str | None = field(
        default=None,
        metadata={
            "help": "fields of meta, or ability, by which the kept prompts are balanced: modality,class; not by default"
        },
    )
    per_cell: int | None = field(
        default=None,
        metadata={"help": "prompts kept per cell of --balance; by default as many as the rarest cell has"},
    )
    curriculum: bool = field(
        default=False,
        metadata={"help": "order the kept prompts by pass rate, easiest first; by default as in the file"},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "sampling temperature, above 0; use the same as in training"}
    )
    seed: int = field(default=0, metadata={"help": "seed from which each reply's seed is derived"})
    prompt_style: str = field(
        default="plain",
        metadata=STYLE_ARGUMENT,
    )
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    max_new_tokens: int = field(default=2048, metadata=MAX_TOKENS_ARGUMENT)
    batch_size: int = field(default=16, metadata={"help": "replies generated together"})
    dtype: str = field(default="auto", metadata=DTYPE_ARGUMENT)
    attn_implementation: str = field(default="sdpa", metadata=ATTENTION_ARGUMENT)
    replies: str | None = field(
        default=None, metadata={"help": "output directory of an earlier run whose replies are reused"}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_least, self, num_samples=1, max_new_tokens=1, batch_size=1, limit=1, per_cell=1),
            self._check_draws,
        )

    def check_inputs(self) -> None:
        """Refuses a split that is not there."""
        check_split(Path(self.data), self.split)

    def _check_draws(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 (eval.run gives greedy answers)")
        if self.balance is not None and not all(self.balance_fields):
            raise ValueError(f"balance is {self.balance!r}; expected fields, such as modality,class")
        if self.per_cell is not None and self.balance is None:
            raise ValueError("per_cell is given without balance, whose cells it is about")
        if self.band and not (len(self.band) == 2 and 0 <= self.band[0] < self.band[1] <= 1):
            raise ValueError(f"band {self.band}: expected two rates LOW HIGH with 0 <= LOW < HIGH <= 1")

    @property
    def balance_fields(self) -> list[str]:
        """The fields by which the kept prompts are balanced."""
        return [name.strip() for name in self.balance.split(",")] if self.balance is not None else []

    @property
    def kept_rule(self) -> str:
        """The band as text."""
        return f"{self.band[0]:g} <= pass rate < {self.band[1]:g}" if self.band else "0 < pass rate < 1"

    def keeps(self, rate: float) -> bool:
        """True for a pass rate inside the band; NaN (no judged reply) is outside every band."""
        return self.band[0] <= rate < self.band[1] if self.band else 0 < rate < 1


def select_boundary(arguments: BoundaryArguments) -> Path:
    """Samples, grades and selects; returns the output directory.

    Raises:
        RuntimeError: if no prompt lies in the band; the tables are still written.
    """
    source = Path(arguments.data)
    prompts = read_prompts(source, arguments.split)[: arguments.limit]
    for prompt in prompts:
        for image in prompt.images:
            if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
                raise ValueError(f"prompt {prompt.id!r}: image {image!r} lies outside the prompt set {source}")
    subject = open_subject(arguments.model, arguments.base)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "prompts": prompts_fingerprint(source, arguments.split),
        **{
            name: getattr(arguments, name)
            for name in (
                "split", "num_samples", "band", "temperature", "seed", "prompt_style", "system_prompt",
                "max_new_tokens", "batch_size", "dtype", "attn_implementation",
            )
        },
    }  # fmt: skip
    for name in ("limit", *CHOICE):
        if getattr(arguments, name):
            settings[name] = getattr(arguments, name)
    for name in arguments.balance_fields:
        check_field(prompts, name, where=f"{source}: split {arguments.split}")
    earlier = read_earlier(Path(arguments.replies), settings) if arguments.replies else []
    output_dir = Path(arguments.output_dir)
    with open_run(output_dir, command="eval.boundary", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        run.note(**subject.facts)
        with RecordLog(output_dir / "records.jsonl") as log:
            wanted = {_key(prompt, number) for prompt, number in _replies(prompts, arguments)}
            log.append(*[record for record in earlier if record["key"] in wanted and record["key"] not in log])
            _sample_all(arguments, subject, prompts, log)
            rates = rate_table(prompts, list(log), arguments)
        if arguments.balance is not None:
            rates, cells = balance_rates(prompts, rates, arguments)
            write_table(output_dir / "balance.csv", cell_table(cells, arguments.balance_fields))
        write_table(output_dir / "rates.csv", rates)
        summary = summary_table(rates)
        write_table(output_dir / "summary.csv", summary)
        _print_summary(summary, arguments)
        if arguments.balance is not None:
            print("\n".join(cell_lines(cells, arguments.balance_fields, per_cell=arguments.per_cell)))
        if not rates["kept"].any():
            raise RuntimeError(
                f"no prompt has {arguments.kept_rule}; see {output_dir / 'rates.csv'}, and choose another band (with "
                f"--replies {output_dir} nothing is drawn again), model or temperature"
            )
        kept = [prompt for prompt, inside in zip(prompts, rates["kept"], strict=True) if inside]
        if arguments.curriculum:
            rate = dict(zip(rates["id"], rates["pass_rate"], strict=True))
            kept.sort(key=lambda prompt: -rate[prompt.id])
        if not (output_dir / DATA_DIR).exists():
            with partial_directory(output_dir / DATA_DIR) as partial:
                write_prompts(partial, arguments.split, kept)
                for image in sorted({image for prompt in kept for image in prompt.images}):
                    place_file(source / image, partial / image)
                described = {name: value for name, value in settings.items() if name != "model"}
                write_manifest(partial, "boundary", described)
    return output_dir


def read_earlier(directory: Path, settings: dict[str, Any]) -> list[Record]:
    """Returns the replies of an earlier run, finished or not, whose reply-relevant settings are the same.

    Raises:
        ValueError: if a setting differs; names the first such setting.
    """
    state = read_run(directory)
    if state["command"] != "eval.boundary":
        raise ValueError(f"--replies {directory} belongs to {state['command']}, not to eval.boundary")
    for name, value in settings.items():
        if (
            name not in ("model", "band", "num_samples", "batch_size", "limit", *CHOICE)
            and state["settings"].get(name) != value
        ):
            raise ValueError(
                f"--replies {directory} was made with {name} = {state['settings'].get(name)!r}, now it is {value!r}"
            )
    return read_records(directory / "records.jsonl")


def _sample_all(arguments: BoundaryArguments, subject: Subject, prompts: Sequence[Prompt], log: RecordLog) -> None:
    from eval.replies.generation import generate, greedy_settings, make_batches, render_prompt

    replies = _replies(prompts, arguments)
    if len(log) == len(replies):
        return
    say(f"{len(replies):,} replies, of at most {arguments.max_new_tokens:,} tokens each (--max-new-tokens)")
    model, processor = subject.load(dtype=arguments.dtype, attn_implementation=arguments.attn_implementation)
    settings = greedy_settings(model, processor, arguments.max_new_tokens)
    texts = {
        prompt.id: render_prompt(processor, prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt)
        for prompt in prompts
    }
    asked = [prompt for prompt, _ in replies]
    batches = make_batches(asked, [texts[prompt.id] for prompt in asked], arguments.batch_size)
    spaces = answer_spaces(model.config.model_type, pixel_limits(processor, min_pixels=None, max_pixels=None))
    pending = [batch for batch in batches if any(_key(*replies[index]) not in log for index in batch)]
    for batch in progress(pending, label=f"{arguments.model}: {arguments.split}", unit="batch"):
        chosen = [replies[index] for index in batch]
        seeds = [reply_seed(arguments.seed, prompt.id, number) for prompt, number in chosen]
        generations = generate(
            model,
            processor,
            [texts[prompt.id] for prompt, _ in chosen],
            [[Path(arguments.data) / image for image in prompt.images] for prompt, _ in chosen],
            settings,
            SeededSampler(seeds, temperature=arguments.temperature, device=model.device),
        )
        records: list[Record] = [
            {
                "key": _key(prompt, number),
                "id": prompt.id,
                **graded(prompt, generation, text=texts[prompt.id], space=spaces(prompt, Path(arguments.data))),
            }
            for (prompt, number), generation in zip(chosen, generations, strict=True)
        ]
        log.append(*[record for record in records if record["key"] not in log])


def _replies(prompts: Sequence[Prompt], arguments: BoundaryArguments) -> list[tuple[Prompt, int]]:
    return [(prompt, number) for prompt in prompts for number in range(arguments.num_samples)]


def _key(prompt: Prompt, number: int) -> str:
    return f"{prompt.id}/{number}"


def rate_table(prompts: Sequence[Prompt], records: Sequence[Record], arguments: BoundaryArguments) -> "pd.DataFrame":
    """Returns one row per prompt, in order."""
    import pandas as pd

    by_prompt: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_prompt[record["id"]].append(record)
    rows = []
    for prompt in prompts:
        group = by_prompt[prompt.id]
        scored = [record for record in group if record["status"] != UNSCORED]
        rate = wilson(sum(record["status"] == CORRECT for record in scored), len(scored))
        rows.append(
            {
                "id": prompt.id,
                "ability": prompt.ability,
                "n": len(scored),
                "pass_rate": rate.estimate,
                "low": rate.low,
                "high": rate.high,
                "num_unscored": len(group) - len(scored),
                "at_limit_frac": sum(record["finish_reason"] == "length" for record in group) / len(group),
                "mean_tokens": sum(record["num_tokens"] for record in group) / len(group),
                "kept": arguments.keeps(rate.estimate),
            }
        )
    return pd.DataFrame(rows)


def summary_table(rates: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row per ability and one for all: prompts by how often they succeed, and the share kept (Wilson)."""
    import pandas as pd

    rows = []
    for ability in [*sorted(rates["ability"].unique()), "all"]:
        group = rates if ability == "all" else rates[rates["ability"] == ability]
        kept = wilson(int(group["kept"].sum()), len(group))
        rows.append(
            {
                "ability": ability,
                "n": len(group),
                "num_never": int((group["pass_rate"] == 0).sum()),
                "num_sometimes": int(((group["pass_rate"] > 0) & (group["pass_rate"] < 1)).sum()),
                "num_always": int((group["pass_rate"] == 1).sum()),
                "num_without_judgement": int((group["n"] == 0).sum()),
                "num_replies": int(group["n"].sum() + group["num_unscored"].sum()),
                "num_unscored_replies": int(group["num_unscored"].sum()),
                "num_kept": int(group["kept"].sum()),
                "kept_frac": kept.estimate,
                "low": kept.low,
                "high": kept.high,
            }
        )
    return pd.DataFrame(rows)


def balance_rates(
    prompts: Sequence[Prompt], rates: "pd.DataFrame", arguments: BoundaryArguments
) -> tuple["pd.DataFrame", list[Cell]]:
    """Returns the rates with the balanced prompts kept (`in_band`: what the band alone keeps), and the cells."""
    chosen, cells = balance_prompts(
        prompts,
        set(rates["id"][rates["kept"]]),
        arguments.balance_fields,
        per_cell=arguments.per_cell,
        seed=arguments.seed,
        where=f"{arguments.data}: split {arguments.split}",
    )
    return rates.assign(in_band=rates["kept"], kept=rates["id"].isin(chosen)), cells


def _print_summary(summary: "pd.DataFrame", arguments: BoundaryArguments) -> None:
    columns = ["ability", "n", "num_never", "num_sometimes", "num_always", "num_without_judgement", "num_kept"]
    rows = [columns, *[[str(value) for value in row] for row in summary[columns].to_numpy().tolist()]]
    print("\n".join(format_columns(rows, right=range(1, len(columns)))))
    num_unscored = int(summary["num_unscored_replies"].iloc[-1])
    print(f"kept: {arguments.kept_rule}; {num_unscored} of {summary['num_replies'].iloc[-1]} replies were not judged")


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, BoundaryArguments, description=__doc__, check_inputs=True)
    output_dir = select_boundary(arguments)
    print(f"data: {output_dir / DATA_DIR}")


if __name__ == "__main__":
    run_command(main)
