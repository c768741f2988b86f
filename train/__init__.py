"""What if a part of a model could not change? Freezing, rewards, SFT, GRPO and the necessity experiment."""

FINAL_DIR = "final"
"""Folder in which train.sft and train.grpo write the trained checkpoint."""
