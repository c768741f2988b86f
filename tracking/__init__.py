"""What was run, with what, and how far did it get?"""
