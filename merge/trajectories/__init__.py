"""Trajectories: what a training run's kept steps changed against its start, and lines through them."""
