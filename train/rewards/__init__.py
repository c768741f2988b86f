"""What is rewarded? The rewards of the suite, which call its grader, and functions of your own."""
