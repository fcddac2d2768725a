"""Models in the format of the diffusers library: read, described and written."""
