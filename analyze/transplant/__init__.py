"""What does the change of one layer do by itself? Transplants between two checkpoints, without training."""
