"""How are scripts submitted to Slurm, and what are the states of the jobs?"""
