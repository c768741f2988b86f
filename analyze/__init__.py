"""What changed in a model, and where? Weight deltas, probes and the report."""
