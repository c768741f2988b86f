"""What is a pair, and what is a set of pairs? The record, the files, building, and what every set is checked for."""
