"""How Wan is sampled: its defaults, noise levels and sizes."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np

import gmm_guidance as gg
from full_models.models.family import Defaults
from full_models.models.wan.config import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    WanConfig,
)
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.sampling.solvers import Solver

Grid = Literal["wan", "diffusers", "diffusers-0.36"]
SHIFT = 5.0  # of the published code at every size, 3 in diffusers


def wan_schedule(steps: int, shift: float = SHIFT, grid: Grid = "wan") -> Schedule:
    """Noise levels of Wan, as its own code or diffusers' UniPC scheduler takes them.

    The shift maps even times ``u`` to ``s = shift u / (1 + (shift - 1) u)``, and
    ``sigma = s / (1 - s)``. The grids differ in ``u``:

    - ``"wan"``: from 0.999 to 0, whose last step leads to the data. It is that of
      ``FlowSteps``; diffusers took it up to 0.36 (``"diffusers-0.36"``).
    - ``"diffusers"``: from 1 to 0.001, without the last and with 0 after it, as
      diffusers does since 0.37. Its first level, infinite noise, is s = 1 - 1e-6.

    The same seed gives other videos on each.

    Args:
        steps: number of steps, at least 1.
        shift: > 0; the published code has 5, diffusers' files 3, and the model card of
            the 1.3B 8 to 12.
        grid: see above.

    Raises:
        ValueError: for an unknown grid, or values out of these ranges.
    """
    flow = gg.FlowSteps(steps, shift=shift)
    if grid not in get_args(Grid):
        raise ValueError(
            f"grid must be one of {', '.join(get_args(Grid))}, got {grid!r}."
        )
    if grid != "diffusers":
        return flow
    u = np.linspace(1.0, 1e-3, steps + 1)[:-1]
    s = shift * u / (1.0 + (shift - 1.0) * u)
    s[0] -= 1e-6
    return gg.CustomSchedule(tuple(s / (1.0 - s)))


@dataclasses.dataclass(frozen=True)
class WanPipeline:
    """The ``Pipeline`` of a Wan transformer.

    Args:
        config: the shape.
    """

    config: WanConfig

    @property
    def title(self) -> str:
        """Depth, width and the size of the videos."""
        c = self.config
        (height, width), frames = self.sizes[0], self.frames
        return (
            f"Wan: {c.depth} blocks of width {c.width}, {frames} frames of {width} x "
            f"{height}, {c.compute_dtype}"
        )

    @property
    def condition(self) -> Literal["prompts"]:
        """Prompts."""
        return "prompts"

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """Shape of one sample, ``(T, H, W, C)`` in latents."""
        return (*self.config.latent_shape, self.config.in_channels)

    @property
    def frames(self) -> int:
        """Frames of a video."""
        return (self.config.latent_shape[0] - 1) * FRAMES_PER_LATENT + 1

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The size of the config; any other is as good, see ``WanConfig.for_video``."""
        _, height, width = self.config.latent_shape
        return ((height * PIXELS_PER_LATENT, width * PIXELS_PER_LATENT),)

    @property
    def defaults(self) -> Defaults:
        """50 steps of UniPC and CFG 5, as the published code."""
        return Defaults(steps=50, solver="unipc", cfg_scale=5.0)

    def schedule(self, steps: int, solver: str | Solver = "unipc") -> Schedule:
        """Wan's own grid with its shift of 5; others by ``wan_schedule``."""
        return wan_schedule(steps)

    def solver(self, name: str) -> str | Solver:
        """The solver of a name.

        Raises:
            ValueError: for the ancestral solver, which flows have none of.
        """
        if name == "ancestral":
            raise ValueError(
                "the ancestral solver needs a DDPM chain, got a flow (Wan); use unipc, "
                "dpmpp_2m, euler or heun."
            )
        return name

    def denoiser(self, model: gg.ProcessStack, solver: str | Solver) -> gg.ProcessStack:
        """The model itself."""
        return model

    def labels_of(self, name: str) -> tuple[int, ...]:
        """Prompts have numbers only.

        Raises:
            ValueError: for any name.
        """
        raise ValueError(f"labels of this model are numbers of prompts, got {name!r}.")

    def label_name(self, label: int) -> str:
        """The number of the prompt."""
        return str(label)
