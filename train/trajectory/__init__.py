"""Keeping a trajectory while training."""
