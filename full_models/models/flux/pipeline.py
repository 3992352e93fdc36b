"""How Flux.1 is sampled: its defaults, noise levels and sizes."""

from __future__ import annotations

import dataclasses
import math

import gmm_guidance as gg
from full_models.models.family import Defaults
from full_models.models.flux.config import FluxConfig
from full_models.models.text_to_image import FIRST_TIME, PromptPipeline
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.sampling.solvers import Solver


def flux_schedule(steps: int, num_tokens: int | None = None) -> Schedule:
    """Noise levels of Flux.1, as in the published code and in diffusers.

    Even times from 1 to 0, shifted by ``exp(mu)`` with ``mu = 0.5 + 0.65 (num_tokens -
    256) / 3840``, so that larger images start with more steps at high noise.

    Args:
        steps: number of steps, at least 1.
        num_tokens: tokens of an image (pixels / 256), for dev; ``None`` is without a
            shift, for schnell.

    Raises:
        ValueError: for values out of these ranges.
    """
    mu = 0.0 if num_tokens is None else 0.5 + 0.65 * (num_tokens - 256) / 3840
    return gg.FlowSteps(steps, t_max=FIRST_TIME, shift=math.exp(mu))


@dataclasses.dataclass(frozen=True)
class FluxPipeline(PromptPipeline):
    """The ``Pipeline`` of a Flux.1 transformer.

    Args:
        config: the shape.
    """

    config: FluxConfig

    @property
    def title(self) -> str:
        """Variant, depth, width and the size of the images."""
        c, (height, width) = self.config, self.sizes[0]
        return (
            f"Flux.1 {c.variant}: {c.num_double} + {c.num_single} blocks of width "
            f"{c.width}, images {width} x {height}, {c.compute_dtype}"
        )

    @property
    def autoencoder(self) -> str:
        """Name of the autoencoder for ``load_autoencoder``."""
        return "Flux.1-VAE"

    @property
    def defaults(self) -> Defaults:
        """Real CFG for the de-distilled model only; S² at scale 1 for dev."""
        if self.config.variant == "schnell":
            return Defaults(steps=4, cfg_scale=1.0, s2_scale=0.0)
        scale = 1.0 if self.config.variant == "dev" else 3.5
        return Defaults(steps=28, cfg_scale=scale)

    def schedule(self, steps: int, solver: str | Solver = "euler") -> Schedule:
        """Flux's levels, shifted by the size of the image except in schnell."""
        is_shifted = self.config.variant != "schnell"
        return flux_schedule(steps, self.config.num_tokens if is_shifted else None)
