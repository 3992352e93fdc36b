"""Training of small denoisers."""
