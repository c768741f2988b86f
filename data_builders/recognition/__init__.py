"""Recognition pairs: a photograph with an object and without it."""
