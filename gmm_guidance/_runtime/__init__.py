"""Files, checkpoints, progress and other support without science."""
