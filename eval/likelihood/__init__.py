"""Densities of models, and telling what does not belong to the data (docs/density.md)."""
