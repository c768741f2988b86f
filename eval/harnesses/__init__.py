"""Replies that other evaluation harnesses kept: how their files are read, and where their verdicts differ from ours."""
