"""Models built with the operators, and their training."""
