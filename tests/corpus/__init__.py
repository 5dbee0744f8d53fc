"""Tests of empathy_jax.corpus."""
