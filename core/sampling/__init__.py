"""From a model and a seed to images: denoisers and solvers."""
