"""How does a PEFT adapter from elsewhere become a checkpoint? Merged into its model, in whatever spelling it was saved.

PEFT 0.21 loads an adapter with the names of Transformers 4 (`model.layers.…`) into nothing, with a warning.
"""

import re
from pathlib import Path

from models.adapters.reading import PEFT_PREFIX
from models.families import family_of
from models.loading import load_model, load_processor, local_checkpoint


def merge_adapter_into(start: str, adapter: str, output_dir: str, *trained: str) -> None:
    """Writes the start checkpoint with an adapter merged in, in the start's dtype, and its processor.

    Args:
        start: folder or hub id of the model that the adapter was trained on.
        adapter: the adapter's folder.
        output_dir: where to write.
        trained: files of weights that were trained in full, pickled; only tensors are read from them.

    Raises:
        ValueError: if one of these weights is not the model's.
    """
    import torch
    from peft import PeftModel

    directory = local_checkpoint(start)
    model = load_model(directory)
    family = family_of(model.config.model_type)
    for file in trained:
        content = torch.load(file, map_location="cpu", weights_only=True)
        weights = {family.canonical(name.removeprefix(PEFT_PREFIX)): tensor for name, tensor in content.items()}
        if unknown := model.load_state_dict(weights, strict=False).unexpected_keys:
            raise ValueError(f"{file}: holds {unknown[0]!r}, which {start} does not have ({len(unknown)} such)")
    names = {"^" + re.escape(old): new for old, new in family.spellings}
    merged = PeftModel.from_pretrained(model, adapter, key_mapping=names).merge_and_unload()
    merged.save_pretrained(Path(output_dir))
    load_processor(directory).save_pretrained(Path(output_dir))
