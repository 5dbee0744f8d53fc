"""Chains by a teacher: its prompts, the judgement of its replies, the report."""
