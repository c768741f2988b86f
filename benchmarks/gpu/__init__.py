"""What does the suite cost, and does it hold, on one GPU? See `benchmarks/gpu/__main__.py`."""
