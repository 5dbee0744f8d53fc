"""Language models behind OpenAI-compatible endpoints: one request, the journal, conversations."""
