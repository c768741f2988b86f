"""What if a part of a model could not change? Freezing, rewards, SFT, GRPO and the necessity experiment."""

FINAL_DIR = "final"
"""Where train.sft and train.grpo leave the trained checkpoint."""
