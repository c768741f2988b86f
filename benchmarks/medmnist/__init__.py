"""From files of MedMNIST to a vision tower: time and memory."""
