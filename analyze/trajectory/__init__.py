"""When in training does what change? Weight changes over steps and depth."""
