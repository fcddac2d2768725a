"""What a training method is, and the trainer that runs any of them."""
