"""Chains by a teacher: its prompts and endpoint, the journal, the judgement, the report."""
