"""Measured figures, with the commands that measure them."""
