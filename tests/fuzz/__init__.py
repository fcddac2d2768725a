"""Valid configs with random mistakes in them."""
