"""Distances between sets of images, from their features."""
