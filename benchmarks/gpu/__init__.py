"""What does the suite cost, and is it correct, on one GPU? See `benchmarks/gpu/__main__.py`."""
