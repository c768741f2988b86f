"""In which layers does a model use the picture? Swaps its vision tokens for another picture's, layer by layer.

    python -m analyze.swap --model CHECKPOINT --pairs outputs/pocket/pairs/data --output-dir outputs/swap
    accelerate launch --num_processes 8 -m analyze.swap …

Each pair asks one question about a target picture and holds a source picture with another answer (`data_builders/pairs/
pair.py`). With `--mode from` the model answers with the source's vision tokens in all layers >= k (the paper's code,
appendix D), for every k; `only` swaps layer k alone, `window` the layers k … k + w - 1. All variants of several pairs
run as one batch over composed caches (`prefix.py`), exactly equal to replacing hidden states by hooks.

    rates.csv      per set, task, mode and layer: the paper's metric and stricter ones, with Wilson intervals
    logprobs.csv   the same for the log-probabilities of both answers, which need no decoding
    controls.csv   self-swap, full swap and no swap (`controls.py`); one that fails fails the run
    skipped.csv    pairs that were left out, and why
    defects.csv    other defects that the check before the run found in the pairs
    figures/       both tables over depth
    records.jsonl  one record per pair and mode, with every reply

Known limits: one picture per question, which precedes the question; both pictures need the same grid of vision tokens.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from analyze.probes.inputs import check_choices, check_loading
from analyze.swap.controls import check_controls, control_table
from analyze.swap.plan import MODES, Asking, PairSet, load_sets, plan_units
from analyze.swap.scores import BOX_SPACES
from analyze.swap.summary import summary
from analyze.swap.tables import defect_table, logprob_table, rate_table, skipped_table
from data_builders.pairs.defects import FATAL, Defect, preflight, summarise
from data_builders.pairs.files import check_pairs, pairs_fingerprint
from eval.replies.prompting import MAX_TOKENS_ARGUMENT, STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.replies.subject import check_subject, open_subject
from models.adapters.opening import BASE_ARGUMENT
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, Partition, make_partition
from models.layout import layout_of
from models.loading import ATTENTION_ARGUMENT, DTYPE_ARGUMENT
from tracking.command import check_all, check_least, is_main_process, parse_arguments
from tracking.processes import on_main_process
from tracking.records import Record
from tracking.run import OVERWRITE_ARGUMENT
from tracking.sharding import SharedLog, open_shared_run
from tracking.tables import write_table


@dataclass(frozen=True, kw_only=True)
class SwapArguments:
    """The model, the pairs, and the layers that are swapped."""

    model: str = field(
        metadata={
            "help": "folder or hub id of a checkpoint or a PEFT adapter, or the .yaml of a splice's recipe",
            "check": check_subject,
        }
    )
    pairs: list[str] = field(
        metadata={
            "help": "one or more folders of pairs (with pairs.jsonl, or the published data.jsonl)",
            "check": check_pairs,
        }
    )
    output_dir: str = field(metadata={"help": "where records, tables and figures are written"})
    base: str | None = field(default=None, metadata=BASE_ARGUMENT)
    mode: list[str] = field(
        default_factory=lambda: ["from"],
        metadata={
            "help": "layers that get the source's vision tokens, for every k; any of from (layers k and above), only "
            "(layer k) and window (--window layers from k on)"
        },
    )
    limit: int | None = field(default=None, metadata={"help": "use only the first N pairs of each set"})
    window: int = field(default=4, metadata={"help": "number of layers in a window; only with --mode window"})
    prompt_style: str = field(default="plain", metadata=STYLE_ARGUMENT)
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    answer_prefix: str = field(
        default="",
        metadata={
            "help": "text that the reply is assumed to begin with when the log-probability of an answer is "
            "computed, such as <answer>"
        },
    )
    box_space: str | None = field(
        default=None,
        metadata={
            "help": f"coordinates in which the model writes boxes: {', '.join(BOX_SPACES)}; by default those of "
            "the model's family"
        },
    )
    max_new_tokens: int = field(default=64, metadata=MAX_TOKENS_ARGUMENT)
    batch_size: int = field(default=16, metadata={"help": "pairs per batch at first; halved if memory runs out"})
    dtype: str = field(default="float32", metadata=DTYPE_ARGUMENT)
    attn_implementation: str = field(default="sdpa", metadata=ATTENTION_ARGUMENT)
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_loading, dtype=self.dtype, attn_implementation=self.attn_implementation),
            partial(check_least, self, window=1, max_new_tokens=1, batch_size=1, limit=1),
            partial(check_choices, "mode", self.mode, list(MODES)),
            partial(check_choices, "box space", [self.box_space or next(iter(BOX_SPACES))], list(BOX_SPACES)),
        )


def swap(arguments: SwapArguments) -> Path:
    """Runs the probe to its end and returns its output directory.

    Raises:
        RuntimeError: where a control failed; the tables are written all the same.
    """
    sets = load_sets(arguments.pairs, arguments.limit)
    subject = open_subject(arguments.model, arguments.base)
    layout = layout_of(subject.directory)
    if layout.family.text_only:
        raise ValueError(
            f"{arguments.model} is a {layout.family.model_type}, a text-only model; expected one that sees pictures"
        )
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "pairs": {pair_set.name: pairs_fingerprint(pair_set.directory) for pair_set in sets},
        "modes": arguments.mode,
        "window": arguments.window if "window" in arguments.mode else None,
        "prompt_style": arguments.prompt_style,
        "system_prompt": arguments.system_prompt,
        "answer_prefix": arguments.answer_prefix,
        "box_space": arguments.box_space,
        "max_new_tokens": arguments.max_new_tokens,
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
        "cuts": list(partition.cuts),
        **({} if arguments.limit is None else {"limit": arguments.limit}),
    }
    output_dir = Path(arguments.output_dir)
    with open_shared_run(output_dir, command="analyze.swap", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        run.note(**subject.facts)
        defects = on_main_process(lambda: {each.name: preflight(each.directory, each.pairs) for each in sets})
        fatal = {(name, defect.pair_id) for name, found in defects.items() for defect in found if defect.is_fatal}
        units = plan_units(sets, arguments.mode, fatal)
        from analyze.swap.run import measure_units

        asking = Asking(**{one.name: getattr(arguments, one.name) for one in fields(Asking)})
        with SharedLog(output_dir, [unit.key for unit in units]) as log:
            measure_units(subject, units, log, asking, title=f"{arguments.model}: swap")
            records = log.merge()
        on_main_process(lambda: write_results(output_dir, sets, defects, records, partition))
        check_controls(records)
    return output_dir


def write_results(
    output_dir: Path,
    sets: Sequence[PairSet],
    defects: dict[str, list[Defect]],
    records: Sequence[Record],
    partition: Partition,
) -> None:
    """Writes every table, draws the figures, and says what was left out.

    Raises:
        RuntimeError: where that is every pair.
    """
    from analyze.swap.figures import draw_all

    swapped = [record for record in records if record["left_out"] is None]
    rates, logprobs = rate_table(swapped, partition), logprob_table(swapped, partition)
    skipped = skipped_table(defects, records)
    write_table(output_dir / "rates.csv", rates)
    write_table(output_dir / "logprobs.csv", logprobs)
    write_table(output_dir / "controls.csv", control_table(swapped))
    write_table(output_dir / "defects.csv", defect_table(defects))
    write_table(output_dir / "skipped.csv", skipped)
    for each in sets:
        num_skipped = skipped.loc[skipped["set"] == each.name, "pair_id"].nunique()
        print(f"{each.name}: {len(each.pairs) - num_skipped} of {len(each.pairs)} pairs swapped", file=sys.stderr)
        lines = summarise(defects[each.name], len(each.pairs))
        found_later = skipped[(skipped["set"] == each.name) & ~skipped["kind"].isin(FATAL)]
        lines += [
            f"{len(own)} of {len(each.pairs)} pairs: {kind}; left out" for kind, own in found_later.groupby("kind")
        ]
        for line in lines:
            print(f"  {line}", file=sys.stderr)
    if not swapped:
        raise RuntimeError(f"no pair could be swapped; {output_dir / 'skipped.csv'} says why")
    draw_all(rates, logprobs, output_dir / "figures")


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SwapArguments, description=__doc__, check_inputs=True)
    output_dir = swap(arguments)
    if is_main_process():
        print(*summary(output_dir), f"rates: {output_dir / 'rates.csv'}", sep="\n")
