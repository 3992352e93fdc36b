"""What the command ``full-models`` does."""
