"""Shared parts of the probes: inputs, and figures over the decoder's depth."""
