"""Which parameters may not change, and did they stay? Freezing, its proof, and what the engine holds."""
