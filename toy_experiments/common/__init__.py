"""The framework of the experiments."""
