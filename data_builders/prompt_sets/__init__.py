"""What is a prompt set? Its format, and how pictures get into it."""
