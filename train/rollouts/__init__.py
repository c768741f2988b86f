"""Does vLLM sample from the trained model? Prompts, weights and log-probabilities are compared."""
