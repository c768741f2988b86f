"""What changed in a model, and where? Weight deltas and the report."""
