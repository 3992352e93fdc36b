"""Experiments on Gaussian mixtures: guidance beside the exact answer."""
