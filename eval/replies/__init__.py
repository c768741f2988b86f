"""How are replies made? Prompts, pictures, conditions, engines, decoding, and the outcome of each prompt."""
