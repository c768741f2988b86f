"""What is inside a vision-language model? Families, blocks, checkpoints, loading, and the pocket model."""
