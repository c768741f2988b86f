"""How sure are we? Scores, paired differences, intervals, tests and power."""
