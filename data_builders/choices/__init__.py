"""Prompts from published tables of questions about medical pictures."""
