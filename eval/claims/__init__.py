"""Does what was measured bear out what the paper claims?"""
