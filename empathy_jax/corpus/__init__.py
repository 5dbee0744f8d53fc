"""From raw dumps of counselling questions to clean records and splits."""
