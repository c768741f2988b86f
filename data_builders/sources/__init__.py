"""Readers of rows and texts from files, folders and hub data sets."""
