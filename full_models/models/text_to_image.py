"""What the configs and pipelines of SD3 and Flux share."""

from __future__ import annotations

from typing import Any, Literal, get_args

from full_models.models.attention import Implementation
from full_models.models.family import check_counts
from gmm_guidance.diffusion.parameterization import PREDICTIONS
from gmm_guidance.diffusion.process import Process
from gmm_guidance.sampling.solvers import Solver

PIXELS = 8  # along a side for each of the latent's
# Noise alone is time 1, an infinite level: this one is as good to float32's rounding.
FIRST_TIME = 1.0 - 1e-7
# Other models in the bundles of Stability AI and ComfyUI.
BUNDLED = ("first_stage_model.", "text_encoders.", "cond_stage_model.", "model_ema.")


class PromptPipeline:
    """What all pipelines of text to image share.

    Attributes:
        config: the shape of the model.
    """

    config: Any

    @property
    def condition(self) -> Literal["prompts"]:
        """Prompts."""
        return "prompts"

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)`` of a latent."""
        return (*self.config.input_size, self.config.in_channels)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The size of the config; ``for_image`` of the config makes others."""
        height, width = self.config.input_size
        return ((height * PIXELS, width * PIXELS),)

    def solver(self, name: str) -> str | Solver:
        """The solver of a name.

        Raises:
            ValueError: for the ancestral solver, which needs a chain.
        """
        if name == "ancestral":
            raise ValueError(
                f"the ancestral solver needs a DDPM chain (DiT), got a flow "
                f"({type(self.config).__name__}); use euler, heun, dpmpp_2m or unipc."
            )
        return name

    def denoiser(self, model: Any, solver: str | Solver) -> Any:
        """The model itself."""
        return model

    def labels_of(self, name: str) -> tuple[int, ...]:
        """Prompts have numbers only.

        Raises:
            ValueError: for any name.
        """
        raise ValueError(f"prompts are chosen by number, got {name!r}.")

    def label_name(self, label: int) -> str:
        """The number of the prompt."""
        return str(label)


def check_config(config: Any, counts: tuple[str, ...]) -> None:
    """Refuse values that no transformer of text and image has."""
    check_counts(config, (*counts, "width", "depth", "num_heads"))
    if config.width % config.num_heads:
        raise ValueError(
            f"width must be a multiple of num_heads={config.num_heads}, got "
            f"{config.width}."
        )
    if not isinstance(config.process, Process) or config.prediction not in PREDICTIONS:
        raise ValueError(
            f"process and prediction must be a noise process and one of "
            f"{', '.join(PREDICTIONS)}, got {config.process!r} and "
            f"{config.prediction!r}; published models have RectifiedFlow() and "
            f"'velocity'."
        )
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"compute_dtype must be 'float32' or 'bfloat16', got "
            f"{config.compute_dtype!r}."
        )
    if config.attention not in get_args(Implementation):
        raise ValueError(
            f"attention must be one of {', '.join(get_args(Implementation))}, got "
            f"{config.attention!r}."
        )


def check_size(size: tuple[int, ...], patch: int, largest: int | None = None) -> None:
    """Refuse a size of latents that is not made of whole patches, or too many."""
    whole = len(size) == 2 and all(
        isinstance(side, int) and side >= patch and side % patch == 0 for side in size
    )
    if not whole:
        raise ValueError(
            f"input_size must be the height and width of a latent, multiples of "
            f"{patch}, got {size}."
        )
    if largest is not None and max(size) > patch * largest:
        raise ValueError(
            f"input_size must be at most {patch * largest}, the size of the table of "
            f"positions, got {size}; draw smaller images."
        )


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Size of the latent of an image.

    Raises:
        ValueError: unless both are multiples of 16, with the nearest ones.
    """
    multiple = 2 * PIXELS
    for name, size in (("height", height), ("width", width)):
        if size < multiple or size % multiple:
            below = max(size // multiple, 1) * multiple
            raise ValueError(
                f"{name} must be a multiple of {multiple} pixels, got {size}; use "
                f"{below} or {below + multiple}."
            )
    return height // PIXELS, width // PIXELS
