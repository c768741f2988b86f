"""How do pages and figures show models and numbers? Colours, axes, points and intervals."""
