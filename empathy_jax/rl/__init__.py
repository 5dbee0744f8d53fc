"""The maths of reinforcement learning, one idea a function."""
