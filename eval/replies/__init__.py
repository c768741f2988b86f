"""How are replies generated? Prompts, images, conditions, engines, decoding, and the outcome of each prompt."""
