"""Do the intervals hold what they say? Coverage and false alarms of every kind of row, in simulated studies."""
