"""Experiments on Gaussian mixtures: guidance compared with the exact answer."""
