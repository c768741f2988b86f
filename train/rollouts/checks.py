"""Does vLLM read the trainer's prompts, and has it received all weights? Each check ends the run with one line."""

from collections.abc import Collection, Sequence

import torch


def check_prompts(expected: Sequence[Sequence[int]], read: Sequence[Sequence[int]]) -> None:
    """Compares the trainer's prompts with the engine's.

    Raises:
        RuntimeError: naming the first that differs.
    """
    if len(expected) != len(read):
        raise RuntimeError(f"vLLM answered {len(read)} prompts; {len(expected)} were asked")
    for row, (ours, theirs) in enumerate(zip(expected, read, strict=True)):
        if list(ours) != list(theirs):
            pairs = zip(ours, theirs, strict=False)
            place = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
            raise RuntimeError(
                f"vLLM read another prompt than the trainer scores: prompt {row} of the batch has {len(ours)} tokens "
                f"in the trainer and {len(theirs)} in vLLM, and they differ from token {place} on"
            )


def only_one(name: str, loaded: Collection[str]) -> str:
    """Returns the engine's parameter into which a tensor was loaded.

    Raises:
        RuntimeError: if it was loaded into none or several.
    """
    if len(loaded) != 1:
        where = f"into {', '.join(sorted(loaded))}" if loaded else "nowhere"
        raise RuntimeError(f"vLLM put the trainer's {name} {where}; expected one weight, which could be read back")
    return next(iter(loaded))


def check_covered(filled: dict[str, int], engine: dict[str, torch.Tensor], *, is_divided: bool = False) -> None:
    """Checks that a full sync fills every weight of the engine, except rows that pad the vocabulary.

    Args:
        filled: number of elements loaded into each weight of the engine.
        engine: the engine's weights.
        is_divided: True if the engine's processes have parts of the weights, so that element counts cannot be compared.

    Raises:
        RuntimeError: naming a weight that was not filled.
    """
    for name, parameter in engine.items():
        padded = "embed_tokens" in name or "lm_head" in name
        if name not in filled or (filled[name] != parameter.numel() and not padded and not is_divided):
            raise RuntimeError(
                f"the weight sync fills {filled.get(name, 0)} of {parameter.numel()} elements of vLLM's {name}; "
                "the rest would keep the values loaded from disk"
            )


def check_sent(sent: Collection[str], known: Collection[str], trainable: Collection[str]) -> None:
    """Checks that a sync sent every trainable weight.

    Raises:
        RuntimeError: naming one that was not sent.
    """
    forgotten = sorted(set(known) & set(trainable) - set(sent))
    if forgotten:
        raise RuntimeError(f"the weight sync left out {forgotten[0]} ({len(forgotten)} such), which is trainable")
