"""What do we show a model? Prompt sets, pair sets and the pocket world."""
