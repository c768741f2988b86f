"""What do we show a model? Prompt sets and the pocket world."""
