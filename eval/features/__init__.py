"""What turns images into features: Inception, small classifiers, and torch-fidelity beside them."""
