"""Tests of the measures and of the report."""
