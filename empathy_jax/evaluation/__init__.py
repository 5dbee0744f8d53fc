"""Measures of generated chains and answers, and the page that reports them."""
