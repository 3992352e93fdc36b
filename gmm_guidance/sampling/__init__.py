"""Sampling of a denoiser under guidance."""
