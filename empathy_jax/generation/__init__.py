"""Sampling from a decoder: prefill, decode, stop."""
