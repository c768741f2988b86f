"""How do the commands of a study run on one machine: in which order, and in which processes?"""
