"""What was found? The tables of a study, or of single commands, as one page."""
