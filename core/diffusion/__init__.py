"""Paths, tables of betas, meanings of a network's output, time grids, training times and losses."""
