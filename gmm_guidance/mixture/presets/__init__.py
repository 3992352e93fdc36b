"""The named mixtures of the guidance literature, each a function of a few numbers.

Every function returns a ``GaussianMixture``; lengths are in the units of the data and
``std`` is a standard deviation (the mixture's own argument is a variance). One class of
a preset is ``mixture.condition(label)``.
"""

from gmm_guidance.mixture.presets.lattices import checkerboard, grid
from gmm_guidance.mixture.presets.modes import four_corners, ring, two_modes
from gmm_guidance.mixture.presets.random_mixture import random
from gmm_guidance.mixture.presets.registry import PRESETS, get, names
from gmm_guidance.mixture.presets.trees import tree

__all__ = [
    "PRESETS",
    "checkerboard",
    "four_corners",
    "get",
    "grid",
    "names",
    "random",
    "ring",
    "tree",
    "two_modes",
]
