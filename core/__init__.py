"""What every method shares: paths, predictions, networks, samplers, data, trainer, config,
checkpoints."""
