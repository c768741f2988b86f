"""Are the replies of vLLM those of the model that is trained? Prompts, weights and log-probabilities compared."""
