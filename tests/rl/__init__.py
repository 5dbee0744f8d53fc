"""Tests of empathy_jax.rl."""
