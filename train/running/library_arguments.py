"""Which arguments does training take from TRL? Its dataclasses, by name: importing them takes seconds.

The files of their fields are those of TRL 1.16 and Transformers 5.23. Where an installed version has them elsewhere,
mistakes are found all the same, but only after the import.
"""

from models.loading import check_checkpoint
from tracking.fields import LibraryClass

BASES = (("trl/trainer/base_config.py", "_BaseConfig"), ("transformers/training_args.py", "TrainingArguments"))

REQUIRED = {"output_dir": "run directory; the trained checkpoint is its final/"}

GRPO_CONFIG = LibraryClass(
    module="trl", name="GRPOConfig", sources=(("trl/trainer/grpo_config.py", "GRPOConfig"), *BASES), required=REQUIRED
)
SFT_CONFIG = LibraryClass(
    module="trl", name="SFTConfig", sources=(("trl/trainer/sft_config.py", "SFTConfig"), *BASES), required=REQUIRED
)
MODEL_CONFIG = LibraryClass(
    module="trl",
    name="ModelConfig",
    sources=(("trl/trainer/model_config.py", "ModelConfig"),),
    required={"model_name_or_path": "the checkpoint to start from, folder or hub id"},
    checks={"model_name_or_path": check_checkpoint},
)
