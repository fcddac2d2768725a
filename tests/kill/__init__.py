"""Kills command lines at random moments and compares what the same commands make of it with what
they make when left alone: python -m tests.kill --help."""
