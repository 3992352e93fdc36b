"""The mixtures of the experiments, their noise levels and starting points."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import numpy as np
import scipy.special
import scipy.stats

import gmm_guidance as gg

MixtureName = Literal["two_modes", "four_corners", "tree", "overlap"]
#: The mixtures of the analysis.
MIXTURES: tuple[MixtureName, ...] = ("two_modes", "four_corners", "tree")
MIXTURE_TITLES = {
    "two_modes": "two modes (1-D)",
    "four_corners": "four corners (2-D)",
    "tree": "tree (2-D)",
    "overlap": "overlapping modes (1-D)",
}


@functools.cache
def make_mixture(name: MixtureName, std: float = 1.0) -> gg.GaussianMixture:
    """The mixture of a name.

    Args:
        name: ``overlap`` has modes one standard deviation from zero.
        std: standard deviation of each mode of ``two_modes`` and ``four_corners``,
            whose means are at -4 and 4.
    """
    if name == "overlap":
        return gg.presets.two_modes(std=4.0)
    if name == "tree":
        return gg.presets.tree()
    return (gg.presets.two_modes if name == "two_modes" else gg.presets.four_corners)(
        std
    )


def relative_schedule(name: MixtureName, num_steps: int) -> gg.Karras:
    """Noise levels in proportion to the data: 0.0005 to 20 standard deviations."""
    with jax.ensure_compile_time_eval():  # also inside of a traced program
        scale = float(make_mixture(name).scale)
    return gg.Karras(num_steps, 0.0005 * scale, 20.0 * scale)


def balanced_labels(mixture: gg.GaussianMixture, num_samples: int) -> np.ndarray:
    """Labels 0, 1, ... in turn, ``[n]`` int32."""
    return (np.arange(num_samples) % mixture.num_labels).astype(np.int32)


def balanced_start(
    mixture: gg.GaussianMixture, schedule: Any, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels in turn and noise at the highest level, ``[n]`` and ``[n, d]``.

    On a line the noise is the quantiles of its distribution, so that the samples have
    no Monte Carlo error (the flow is monotone for every mask). In the plane it is
    randomized quasi-Monte Carlo, a scrambled Halton sequence for each label: each
    sample is Gaussian, and together they are spread more evenly than independent ones.
    """
    count = mixture.num_labels
    per_label = num_samples // count
    labels = balanced_labels(mixture, per_label * count)
    if mixture.dim == 1:
        levels = (np.arange(per_label) + 0.5) / per_label
        normal = np.repeat(scipy.special.ndtri(levels), count)[:, None]
    else:
        normal = np.empty((len(labels), mixture.dim))
        for label in range(count):
            generator = np.random.default_rng([seed, label])
            halton = scipy.stats.qmc.Halton(mixture.dim, rng=generator)
            normal[label::count] = scipy.special.ndtri(halton.random(per_label))
    return labels, (schedule.sigmas()[0] * normal).astype(np.float32)
