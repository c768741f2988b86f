"""What does the vision tower know? Probes on its frozen features, layer by layer."""
