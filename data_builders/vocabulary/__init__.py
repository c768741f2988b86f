"""Which words are scientific? The word lists of the reading pairs."""
