"""Counting pairs: the same rendered scene with more and with fewer objects."""
