"""How a model behaves where behaviour matters: 160 prompts asked of it, its replies read by plain rules.

The prompts are `safety/suite.jsonl`, each with what a good reply does (`wanted`). Run it with
`python -m empathy_jax.evaluation.suite`; docs/safety.md says what the rules see and what they do not.
"""
