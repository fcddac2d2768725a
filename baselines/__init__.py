"""Generators of another kind, for comparison: what diffusion's competitors give for one evaluation
and the same budget."""
