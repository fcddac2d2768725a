"""Ablations: a question, the cells that answer it, and what they say with which certainty."""
