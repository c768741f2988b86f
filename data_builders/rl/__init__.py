"""Prompts for reinforcement learning from rows in verl's schema."""
