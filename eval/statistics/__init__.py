"""How certain are the results? Scores, paired differences, intervals, tests and power."""
