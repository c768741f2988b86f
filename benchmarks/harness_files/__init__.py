"""Files of other evaluation harnesses, written by the harnesses themselves: the test data of `eval.import`."""
