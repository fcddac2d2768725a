"""Measuring: distances between sets of images, and the sweep over step counts that writes rows."""
