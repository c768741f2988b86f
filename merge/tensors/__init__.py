"""How do the tensors of a splice come about? Copied bytes, transplants, and a model in memory."""
