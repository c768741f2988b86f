"""How are the tensors of a splice produced? By copying bytes, by transplants, or in a model in memory."""
