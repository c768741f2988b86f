"""What can a model do? Prompts, generation, grading, abilities, statistics."""
