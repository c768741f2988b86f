"""What holds for a checkpoint? Its names and files, and the suite's instruments on a small random copy."""
