"""Tests of empathy_jax.data."""
