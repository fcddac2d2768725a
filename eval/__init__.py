"""Measuring: feature extractors, distances between sets of images, the sweep over step counts, tables and plots."""
