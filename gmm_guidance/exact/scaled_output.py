"""S²-Guidance of networks in which a dropped block scales the output.

A network ``F`` in its own parameterization is the denoiser ``D = a(sigma) x + b(sigma)
F``. If a dropped block leaves ``(1 - kappa) F``, the correction is

    D_c - D_weak = kappa b F = kappa (D_c - a(sigma) x),                          (1)

and its direction over the noise level depends on the parameterization alone:

    epsilon    a = 1
    EDM's F    a = s^2 / (s^2 + sigma^2), with the data's standard deviation s
    velocity   a = 1 / (1 + sigma), of a rectified flow
    x0         a = 0

For a Gaussian class ``N(m, v I)``, ``D_c = m + alpha (x - m)`` with ``alpha = v / (v +
sigma^2)``, so that (1) has the slope ``kappa (alpha - a)`` and the push ``kappa (1 - a)
m``. The flow with this term is linear: epsilon contracts, x0 expands and pushes
outward, EDM and velocity contract and push outward.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance.blocks.shared_prefix import run_blocks
from gmm_guidance.diffusion.parameterization import (
    Prediction,
    check_prediction,
    denoised_at_sigma,
)
from gmm_guidance.diffusion.process import Process
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

_NODES = 4001


class ModeChange(NamedTuple):
    """How samples of a Gaussian mode differ from the mode.

    Attributes:
        log_width: log of their standard deviation over that of the mode.
        shift: displacement of their mean away from the origin, in standard deviations
            of the mode.
    """

    log_width: float
    shift: float


def scaled_output_change(
    process: Process,
    prediction: Prediction,
    strength: float,
    *,
    std: float,
    distance: float,
    sigma_min: float,
    sigma_max: float,
) -> ModeChange:
    """What the probability flow with Eq. 1 makes of a Gaussian class.

    Exact for any strength: the linear flow solved by quadrature.

    Args:
        process: the process that the network was trained with.
        prediction: what it predicts, as in ``ProcessStack``.
        strength: weight of the term times kappa.
        std: standard deviation of the class, > 0.
        distance: distance of its mean from the origin (from the mean of an
            ``ScaledPrediction``), >= 0.
        sigma_min: lowest noise level at which the term acts, > 0.
        sigma_max: highest noise level at which it acts.

    Returns:
        The change against samples without the term.

    Raises:
        ValueError: for an unknown prediction, or values out of range.
    """
    if not (std > 0 and distance >= 0 and 0 < sigma_min < sigma_max < np.inf):
        raise ValueError(
            f"std must be > 0, distance >= 0 and 0 < sigma_min < sigma_max, got "
            f"std={std}, distance={distance}, sigma_min={sigma_min} and "
            f"sigma_max={sigma_max}."
        )
    sigma = np.geomspace(sigma_min, sigma_max, _NODES)
    at = [
        _input_part(process, prediction, np.full((_NODES, 1), x), sigma)
        for x in (1.0, 0.0)
    ]
    a = np.asarray(at[0] - at[1], np.float64)[:, 0]
    slope = strength * (std**2 / (std**2 + sigma**2) - a)
    step = np.diff(np.log(sigma))
    growth = np.append(0.0, np.cumsum(0.5 * step * (slope[1:] + slope[:-1])))
    # A push at sigma reaches the samples through the flow below it.
    push = strength * distance * (1.0 - a) * np.exp(growth) / np.hypot(std, sigma)
    return ModeChange(
        float(growth[-1]), float(np.sum(0.5 * step * (push[1:] + push[:-1])))
    )


def _input_part(process: Process, prediction: Prediction, x, sigma) -> jax.Array:
    """``a(sigma) x``: the denoised samples if the network returned zero."""
    return denoised_at_sigma(process, jnp.zeros_like(x), x, sigma, prediction)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mixture", "kappa"],
    meta_fields=["process", "prediction", "num_blocks"],
)
@dataclasses.dataclass(frozen=True)
class ScaledOutputStack:
    """The exact denoiser as a stack of blocks, each of which adds to its output.

    With all blocks it is exact; each dropped block takes ``kappa`` of the network's
    output away (Eq. 1). It shows what S²-Guidance does in a parameterization without
    any learning error. A ``Denoiser`` and a ``BlockStack``.

    Args:
        mixture: the data distribution.
        kappa: fraction of the output contributed by each block.
        process: the process of the parameterization.
        prediction: what the network predicts, as in ``ProcessStack``.
        num_blocks: number of blocks, at least 2.

    Raises:
        ValueError: for an unknown prediction, or fewer than 2 blocks.
    """

    mixture: GaussianMixture
    kappa: ArrayLike
    process: Process
    prediction: Prediction
    num_blocks: int = 8

    def __post_init__(self):
        check_prediction(self.prediction)
        if self.num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2, got {self.num_blocks}.")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(d,)``."""
        return (self.mixture.dim,)

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.mixture.num_labels

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """The part of the output ``b F`` not contributed by blocks, and a block's."""
        output = self.mixture.denoise(x, sigma, label) - self._input_part(x, sigma)
        own = jnp.asarray(self.kappa, output.dtype) * output
        return output - self.num_blocks * own, own

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """Add the contribution of a block."""
        return hidden + context

    def readout(
        self, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
    ) -> jax.Array:
        """``a x + b F``."""
        return self._input_part(x, sigma) + hidden

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """Denoise ``x`` ``[n, d]`` at ``sigma`` > 0, a scalar or ``[n]``."""
        return run_blocks(self, x, jnp.asarray(sigma), label)

    def _input_part(self, x: jax.Array, sigma: ArrayLike) -> jax.Array:
        return _input_part(self.process, self.prediction, x, sigma)
