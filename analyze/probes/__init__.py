"""What do the probes share? Their inputs, and figures over the decoder's depth."""
