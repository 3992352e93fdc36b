"""The ancestral sampler of DDPM, with fixed or learned variance."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from gmm_guidance.guidance.renoised import Renoised

Variance = Literal["posterior", "beta", "learned"]


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """One reverse step of the noising chain: the posterior's mean, and fresh noise.

    Ho et al. 2020 (arXiv 2006.11239, Eqs. 6 and 7), for any two levels of a
    variance-preserving chain, in the clock of sigma. First order, one evaluation a
    step, none of its noise in the last.

    Args:
        variance: ``"posterior"``, that of ``q(x_{t-1} | x_t, x0)``, the smallest;
            ``"beta"``, that of the forward step, the largest; or ``"learned"``, between
            them in the logarithm (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 15), by
            a ``v`` in [-1, 1] which the denoiser returns in as many further channels
            (last axis) as the sample has. Guidance must leave those alone, see
            ``GuidedChannels``.

    Raises:
        ValueError: for an unknown variance, and when a sampler runs it, for a denoiser
            without the channels of a learned variance.
        TypeError: if a rule takes the noise from another prediction (``CFGPlusPlus``).
    """

    variance: Variance = "posterior"

    def __post_init__(self):
        if self.variance not in ("posterior", "beta", "learned"):
            raise ValueError(
                f"variance must be 'posterior', 'beta' or 'learned', got "
                f"{self.variance!r}."
            )

    def num_evaluations(self, is_final: bool) -> int:
        """One."""
        return 1

    def init(self, x: Any) -> Any:
        """Nothing."""
        return ()

    def step(
        self, denoise, x, sigma, sigma_next, carry, state, noise, num_steps, is_final
    ):
        """Mean ``D + (sigma_next / sigma)^2 (x - D)``, then noise."""
        output, state = denoise(x, sigma, state, 0)
        if isinstance(output, Renoised):
            raise TypeError(
                "this guidance rule takes the noise from another prediction "
                '(CFGPlusPlus does), but Ancestral draws its own; use "euler".'
            )
        denoised, v = self._split(output, x)
        if is_final:
            return denoised, carry, state
        share = (sigma_next / sigma) ** 2
        mean = denoised + share * (x - denoised)
        # The steps of x_t, divided by alpha at the next level.
        smallest = sigma_next**2 * (1.0 - share)
        if self.variance == "posterior":
            std = jnp.sqrt(smallest)
        else:
            ahead = sigma**2 - sigma_next**2
            largest = ahead * (1.0 + sigma_next**2) / (1.0 + sigma**2)
            if self.variance == "beta":
                std = jnp.sqrt(largest)
            else:
                above = (v + 1.0) / 2.0
                low, high = jnp.log(smallest), jnp.log(largest)
                std = jnp.exp(0.5 * (low + above * (high - low)))
        return mean + std * noise(), carry, state

    def _split(self, output, x):
        channels = x.shape[-1]
        wanted = 2 * channels if self.variance == "learned" else channels
        if output.shape[-1] != wanted:
            raise ValueError(
                f"variance={self.variance!r} needs a denoiser that returns {wanted} "
                f"channels for samples of {channels}, got {output.shape[-1]}."
            )
        return output[..., :channels], output[..., channels:]
