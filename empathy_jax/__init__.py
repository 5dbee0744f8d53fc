"""Training, judging and shipping a counselling language model that reasons before it replies."""
