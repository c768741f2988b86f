"""Grounding pairs: one object at two positions on a page."""
