"""Is a pair set correct? Finds every defect by recomputation from its files."""
