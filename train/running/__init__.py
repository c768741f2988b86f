"""How does one training run go? Data, rewards, trainers, what is watched, saved and proved."""
