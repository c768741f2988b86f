"""How does one training run work? Data, rewards, trainers, telemetry, checkpoints and proofs."""
