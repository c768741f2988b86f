"""What is kept of a swapped pair? Replies, scores, log-probabilities and controls of each of its variants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyze.swap.scores import is_right, score
from tracking.records import Record

if TYPE_CHECKING:
    from analyze.swap.pairs import ReadyPair
    from analyze.swap.prefix import Reply

LOGPROB_DECIMALS = 4
GROUP_COLUMNS = ("set", "task", "mode")
"""What tables give apart."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one variant of a pair replied, and how likely both answers were."""

    reply: "Reply"
    logprob_target: float
    """Of the target picture's answer as the beginning of the reply; natural logarithm."""
    logprob_source: float


@dataclass(frozen=True, kw_only=True)
class Control:
    """How one control came out."""

    status: str
    """`equal`, `tie` or `differs`."""
    expected: "Reply"
    found: "Reply"


@dataclass(frozen=True, kw_only=True)
class SwappedPair:
    """All that a pair gave in one mode."""

    variants: tuple[Variant, ...]
    """Of k = 0 … L."""
    plain_target: "Reply"
    """Of `generate`, to the target picture."""
    plain_source: "Reply"
    controls: dict[str, Control]


def pair_record(processor: Any, ready: "ReadyPair", result: SwappedPair) -> Record:
    """Returns what is kept of one pair in one mode: replies, scores, log-probabilities and controls."""
    from eval.replies.generation import tokenizer_of

    def text(reply: "Reply") -> str:
        return str(tokenizer_of(processor).decode(reply.tokens, skip_special_tokens=True))

    pair, space = ready.pair, ready.space
    plain_target, plain_source = text(result.plain_target), text(result.plain_source)
    replies = [text(variant.reply) for variant in result.variants]
    return {
        "grid": ready.target.grid[1:],
        "target_answer": pair.target_answer,
        "source_answer": pair.source_answer,
        "plain_target": plain_target,
        "plain_source": plain_source,
        "right": is_right(pair, replies[-1], space=space),
        "controls": {
            name: {"status": control.status}
            | ({} if control.status == "equal" else {"expected": text(control.expected), "found": text(control.found)})
            for name, control in result.controls.items()
        },
        "variants": [
            {
                "layer": layer,
                "response": reply,
                "num_tokens": len(variant.reply.tokens),
                "finish_reason": variant.reply.finish_reason,
                "logprob_target": round(variant.logprob_target, LOGPROB_DECIMALS),
                "logprob_source": round(variant.logprob_source, LOGPROB_DECIMALS),
                "scores": score(pair, unswapped=replies[-1], swapped=reply, source_reply=plain_source, space=space),
            }
            for layer, (variant, reply) in enumerate(zip(result.variants, replies, strict=True))
        ],
    }


def group_records(records: Sequence[Record]) -> Iterator[tuple[dict[str, Any], list[Record]]]:
    """Yields the labels and the records of each set, task and mode."""
    keys = dict.fromkeys((record["set"], record["task"], record["mode"]) for record in records)
    for set_name, task, mode in keys:
        group = [
            record for record in records if (record["set"], record["task"], record["mode"]) == (set_name, task, mode)
        ]
        yield {"set": set_name, "task": task, "mode": mode}, group
