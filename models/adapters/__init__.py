"""What does an adapter change? PEFT's LoRA folders, read and used as checkpoints."""
