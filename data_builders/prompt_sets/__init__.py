"""What is a prompt set? Its format, and how images are stored in it."""
