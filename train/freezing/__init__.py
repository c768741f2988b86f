"""Which parameters are frozen, and did they stay unchanged? Freezing, its proof, and the optimizer's state."""
