"""The positive control of the necessity study: models in which one block is necessary by construction."""
