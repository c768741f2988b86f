"""Does training on one modality help on the others? A matrix of what was trained on and what was evaluated on."""
