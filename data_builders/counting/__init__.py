"""Counting pairs: a rendered scene with more and with fewer objects."""
