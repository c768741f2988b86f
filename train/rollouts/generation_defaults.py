"""What of a checkpoint's `generation_config.json` would act on rollouts unasked? It is set aside.

`generate` (Transformers 5.23) fills every field that its caller leaves unset from the checkpoint's own file, so that a
`no_repeat_ngram_size`, a `typical_p` or a `min_new_tokens` there shapes the replies of TRL's rollouts (1.16), whose
log-probabilities in the loss know nothing of it. What a run asks for itself (`generation_kwargs`) stays.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""What says where a reply begins and ends: kept."""
ABOUT_THE_FILE = (
    "transformers_version",
    "_from_model_config",
    "output_attentions",
    "output_hidden_states",
    "use_cache",
)
"""What says nothing of which reply is written."""
SET_BY_TRL = (
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
    "max_length",
)
"""Given by TRL (1.16) for every rollout, so that the checkpoint's own never acted."""


def set_aside(model: "PreTrainedModel") -> dict[str, Any]:
    """Leaves a model only the tokens of its generation configuration, and returns what would have acted otherwise."""
    from transformers import GenerationConfig

    declared = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig(**{name: declared[name] for name in TOKENS if name in declared})
    return {
        name: value
        for name, value in sorted(declared.items())
        if name not in (*TOKENS, *ABOUT_THE_FILE, *SET_BY_TRL) and value is not None
    }


def describe(found: dict[str, Any]) -> str:
    """Returns the line that says what was set aside."""
    listed = ", ".join(f"{name} {value}" for name, value in found.items())
    return (
        f"generation_config.json of the start asks for {listed}: not applied, since the loss does not know of it; "
        "generation_kwargs asks for it"
    )
