"""How does it run on a cluster? Templates, one launcher, and the states of its jobs."""
