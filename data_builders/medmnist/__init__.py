"""Prompts from the files of MedMNIST and MedMNIST+."""
