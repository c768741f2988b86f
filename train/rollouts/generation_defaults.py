"""Removes settings of a checkpoint's `generation_config.json` that would implicitly affect rollouts.

`generate` (Transformers 5.23) fills every unset field from the checkpoint's file, so a `no_repeat_ngram_size`, a
`typical_p` or a `min_new_tokens` there affects the replies of TRL's rollouts (1.16), while the log-probabilities in the
loss ignore it. Settings of the run itself (`generation_kwargs`) are kept.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Fields that define where a reply begins and ends; kept."""
ABOUT_THE_FILE = (
    "transformers_version",
    "_from_model_config",
    "output_attentions",
    "output_hidden_states",
    "use_cache",
)
"""Fields without influence on the replies."""
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
"""Fields that TRL (1.16) always sets, so the checkpoint's values never apply."""


def set_aside(model: "PreTrainedModel") -> dict[str, Any]:
    """Keeps only the token ids of a model's generation configuration, and returns the removed settings."""
    from transformers import GenerationConfig

    declared = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig(**{name: declared[name] for name in TOKENS if name in declared})
    return {
        name: value
        for name, value in sorted(declared.items())
        if name not in (*TOKENS, *ABOUT_THE_FILE, *SET_BY_TRL) and value is not None
    }


def describe(found: dict[str, Any]) -> str:
    """Returns a line that lists the removed settings."""
    listed = ", ".join(f"{name} {value}" for name, value in found.items())
    return (
        f"generation_config.json of the start asks for {listed}: not applied, since the loss does not know of it; "
        "generation_kwargs asks for it"
    )
