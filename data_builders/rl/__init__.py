"""Prompts for reinforcement learning from upstream rows."""
