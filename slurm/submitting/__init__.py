"""How do scripts get to Slurm, and what does it know of them?"""
