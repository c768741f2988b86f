"""Did training widen a model's support or sharpen it? pass@k of several models, compared."""
