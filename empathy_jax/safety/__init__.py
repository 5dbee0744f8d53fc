"""Grading of risk in a text, by rules and a linear model that can be read."""
