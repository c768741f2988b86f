"""How do pages and figures show a model and a number? Colours, axes, points and intervals."""
