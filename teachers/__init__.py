"""Teachers: DDPM training, and exact analytic denoisers for tests."""
