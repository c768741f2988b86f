"""Did training widen what a model can do, or sharpen what it could? pass@k, side by side."""
