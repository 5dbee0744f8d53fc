"""Tests of empathy_jax.safety."""
