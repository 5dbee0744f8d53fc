"""Tests of the ranking of systems by people."""
