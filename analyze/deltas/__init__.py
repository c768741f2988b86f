"""How large is the change between checkpoints, and where? Energy, noise floor, spectra and angles of weight deltas."""
