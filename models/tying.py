"""Is the output head the embedding matrix? A checkpoint's two flags and its weights, as Transformers reads them.

A configuration has one `tie_word_embeddings` at the top and, for a VLM, another in `text_config`. Transformers 5.23
looks at the one at the top. For Qwen2-VL and Qwen2.5-VL, it also accepts the one in `text_config`, unless the files
contain a head that differs from the embedding matrix: then it loads an untied model. For InternVL and Gemma 4, no flag
at the top means tied, again unless the files contain such a head: InternVL is published with such a head and no flag.
"""

from pathlib import Path
from typing import Any

from models.families import family_of
from models.shards import StoredTensor, read_header

TIE_KEY = "tie_word_embeddings"
DECODER_KEY = "text_config"
COMPARED_BYTES = 2**20


def tie_flags(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags that a configuration has, keyed by their place in it; absent ones are left out."""
    decoder = config.get(DECODER_KEY)
    places = {TIE_KEY: config, f"{DECODER_KEY}.{TIE_KEY}": decoder if isinstance(decoder, dict) else {}}
    return {name: part[TIE_KEY] for name, part in places.items() if part.get(TIE_KEY) is not None}


def is_tied(config: dict[str, Any]) -> bool:
    """Returns whether a configuration ties the output head to the embeddings; without a flag, as its family does."""
    family, flags = family_of(config["model_type"]), tie_flags(config)
    if TIE_KEY not in flags and family.tied_by_default:
        return True
    heeded = (TIE_KEY, f"{DECODER_KEY}.{TIE_KEY}") if family.decoder_ties else (TIE_KEY,)
    return any(flags.get(name) is True for name in heeded)


def as_loaded(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Returns a folder's configuration with flags that agree with the model that Transformers makes of its weights.

    Two cases are resolved, both with a stored head that differs from the embedding matrix. A flag at the top says
    untied and one of the decoder says tied: PEFT writes such folders when it merges an adapter with a head of its own
    into a tied model. Or there is no flag at the top, and the family is tied by default.
    """
    flags = tie_flags(config)
    if TIE_KEY not in flags and family_of(config["model_type"]).tied_by_default and _head_differs(config, directory):
        return {**config, TIE_KEY: False}
    contradicts = flags.get(TIE_KEY) is False and flags.get(f"{DECODER_KEY}.{TIE_KEY}") is True
    if not contradicts or not is_tied(config) or not _head_differs(config, directory):
        return config
    return {**config, DECODER_KEY: {**config[DECODER_KEY], TIE_KEY: False}}


def explain_lost_head(config: dict[str, Any]) -> str:
    """Returns what to add to the error that the head is missing, if a flag ties it that Transformers ignores."""
    if is_tied(config) or tie_flags(config).get(f"{DECODER_KEY}.{TIE_KEY}") is not True:
        return ""
    return (
        f"; {DECODER_KEY} ties it to the embeddings, but for a {config['model_type']} Transformers reads only the "
        f"{TIE_KEY} at the top of config.json: set that to true if the head is the embedding matrix"
    )


def _head_differs(config: dict[str, Any], directory: Path) -> bool:
    """Returns whether a folder's files contain a head whose bytes are not the embedding matrix's."""
    family = family_of(config["model_type"])
    found: dict[str, StoredTensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            tensors = read_header(path).tensors
        except (ValueError, OSError):  # opening the checkpoint names what is damaged
            return False
        for stored in tensors:
            name = family.canonical(stored.name)
            found.update({region: stored for region, prefix in family.regions if name.startswith(prefix)})
    if not {"head", "embed"} <= set(found):
        return False
    head, embed = found["head"], found["embed"]
    return head.num_bytes != embed.num_bytes or not _same_content(head, embed)


def _same_content(one: StoredTensor, other: StoredTensor) -> bool:
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        return all(
            first.read(size) == second.read(size)
            for start in range(0, one.num_bytes, COMPARED_BYTES)
            if (size := min(COMPARED_BYTES, one.num_bytes - start))
        )
