"""Decoder and encoder as pure functions over parameter trees, and their Hugging Face form."""
