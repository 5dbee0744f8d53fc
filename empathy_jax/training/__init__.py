"""The phases: each file holds one, with its loss, its update and its run, top to bottom."""
