"""Benchmarks: published measurements, and the commands that produce them."""
