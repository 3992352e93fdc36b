"""Exact answers about rules: what a sampler makes of a mixture, without sampling."""

from gmm_guidance.exact.quantile_map import quantile_map

__all__ = ["quantile_map"]
