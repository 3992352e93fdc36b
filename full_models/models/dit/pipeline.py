"""How DiT and SiT are sampled: their defaults, schedules, solvers and labels."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import gmm_guidance as gg
from full_models.models.dit.config import DiTConfig
from full_models.models.dit.imagenet import imagenet_labels, imagenet_names
from full_models.models.family import Defaults
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.sampling.solvers import Solver

_IMAGENET = 1000
_PIXELS = 8  # along a side for each of the latent's


@dataclasses.dataclass(frozen=True)
class DiTPipeline:
    """The ``Pipeline`` of a DiT or SiT.

    Args:
        config: the shape.
    """

    config: DiTConfig

    @property
    def title(self) -> str:
        """Family, depth, width and size."""
        c = self.config
        family = "SiT" if isinstance(c.process, gg.RectifiedFlow) else "DiT"
        return (
            f"{family}: {c.depth} blocks of width {c.width}, samples {c.input_size} x "
            f"{c.input_size} x {c.in_channels}, {c.compute_dtype}"
        )

    @property
    def condition(self) -> Literal["labels"]:
        """Class labels."""
        return "labels"

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        size = self.config.input_size
        return size, size, self.config.in_channels

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The one size that the table of positions allows."""
        in_pixels = self.config.in_channels in (1, 3)
        size = self.config.input_size * (1 if in_pixels else _PIXELS)
        return ((size, size),)

    @property
    def defaults(self) -> Defaults:
        """CFG 4 as in the samples of the papers, on a golden retriever and an otter."""
        return Defaults(
            labels="207,360" if self.config.num_labels == _IMAGENET else "all"
        )

    def schedule(self, steps: int, solver: str | Solver = "euler") -> Schedule:
        """Steps of the model's own process."""
        if not isinstance(self.config.process, gg.DDPM):
            return gg.FlowSteps(steps)
        ancestral = solver == "ancestral" or isinstance(solver, gg.Ancestral)
        return gg.DDPMSteps(steps, spacing="linspace" if ancestral else "trailing")

    def solver(self, name: str) -> str | Solver:
        """The solver; the ancestral one with the variance that the model has.

        Raises:
            ValueError: for the ancestral solver of a flow.
        """
        if name != "ancestral":
            return name
        if not isinstance(self.config.process, gg.DDPM):
            raise ValueError(
                "the ancestral solver needs a DDPM chain (DiT), got a flow (SiT); use "
                "euler, heun, dpmpp_2m or unipc."
            )
        return gg.Ancestral("learned" if self.config.learn_sigma else "posterior")

    def denoiser(self, model: Any, solver: str | Solver) -> Any:
        """The model, with its variance channels if the solver uses them."""
        learned = isinstance(solver, gg.Ancestral) and solver.variance == "learned"
        return model.with_variance() if learned else model

    def labels_of(self, name: str) -> tuple[int, ...]:
        """The class of ImageNet of a name, or all classes with a word in their names.

        Raises:
            ValueError: if it is unknown or ambiguous, or the classes are others.
        """
        if self.config.num_labels != _IMAGENET:
            raise ValueError(
                f"--labels of this model must be numbers in 0.."
                f"{self.config.num_labels - 1}, got {name!r}; names are known for "
                f"ImageNet's 1,000 classes only."
            )
        return imagenet_labels(name)

    def label_name(self, label: int) -> str:
        """The first name of a class of ImageNet; else its number."""
        if self.config.num_labels == _IMAGENET:
            return imagenet_names()[label][0]
        return str(label)
