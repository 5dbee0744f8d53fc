"""Tests of empathy_jax.generation."""
