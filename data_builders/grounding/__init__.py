"""Grounding pairs: one object at two places of a page."""
