"""Automatic metrics of answers: overlap with references, diversity, manner, models' own views.

Names: `tokens` cuts texts, `overlap` scores pairs of texts, `references` says which pairs and takes
the best and the mean over references, `resampling` gives intervals and tests.
"""
