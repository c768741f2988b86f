"""What if a part of a model could not change? Freezing, rewards, SFT, GRPO and the necessity experiment."""
