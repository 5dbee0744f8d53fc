"""Grading of risk in a text, by rules that can be read."""
