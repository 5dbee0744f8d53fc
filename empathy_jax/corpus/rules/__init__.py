"""The rules of cleaning, by subject."""
