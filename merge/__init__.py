"""What if parts of a model came from elsewhere? Splices and transplants between checkpoints."""
