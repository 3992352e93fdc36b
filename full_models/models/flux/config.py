"""Shapes of the published Flux.1 models, and of any other of their kind."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from full_models.models.attention import Implementation
from full_models.models.family import DType, unknown_name
from full_models.models.text_to_image import check_config, check_size, latent_size
from gmm_guidance.diffusion.parameterization import PredictionName
from gmm_guidance.diffusion.process import Process, RectifiedFlow

Variant = Literal["dev", "schnell", "dedistilled"]
_VARIANTS: dict[str, Variant] = {
    "Flux.1-dev": "dev",
    "Flux.1-schnell": "schnell",
    "Flux.1-dev-dedistilled": "dedistilled",
}
NAMES = tuple(_VARIANTS)
PATCH = 2


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """Shape of a Flux.1 transformer; the defaults are those of Flux.1-dev.

    Attributes:
        input_size: height and width of a latent (pixels / 8), even.
        in_channels: channels of a latent.
        width: features of a token, a multiple of ``num_heads``.
        num_double: number of blocks of two streams, at least 1.
        num_single: number of blocks of one stream, at least 1.
        num_heads: attention heads.
        axes: features of a head that turn by its text position, row and column: even
            numbers whose sum is ``width / num_heads``.
        text_width: features of a text token.
        pooled_width: features of the pooled text.
        variant: ``"dev"`` has an embedding of the distilled guidance scale;
            ``"schnell"`` is distilled for four steps; ``"dedistilled"`` has the tensors
            of schnell and the noise levels of dev, and is guided by real CFG.
        guidance: the distilled scale that dev is given, > 0; others ignore it. It is an
            input of the network, not CFG.
        process: noise process of the training.
        prediction: what the network predicts: the velocity, noise minus data.
        compute_dtype: type of matrix products. Norms, softmax, the residual stream and
            the output are float32 in any case.
        attention: implementation of attention, see ``full_models.models.attention``.

    Raises:
        ValueError: for values out of these ranges.
    """

    input_size: tuple[int, int] = (128, 128)
    in_channels: int = 16
    width: int = 3072
    num_double: int = 19
    num_single: int = 38
    num_heads: int = 24
    axes: tuple[int, int, int] = (16, 56, 56)
    text_width: int = 4096
    pooled_width: int = 768
    variant: Variant = "dev"
    guidance: float = 3.5
    process: Process = RectifiedFlow()
    prediction: PredictionName = "velocity"
    compute_dtype: DType = "float32"
    attention: Implementation = "auto"

    def __post_init__(self):
        object.__setattr__(self, "input_size", tuple(self.input_size))
        object.__setattr__(self, "axes", tuple(self.axes))
        counts = ("in_channels", "text_width", "pooled_width")
        check_config(self, (*counts, "num_double", "num_single"))
        features = self.width // self.num_heads
        whole = len(self.axes) == 3 and all(a > 0 and a % 2 == 0 for a in self.axes)
        if not whole or sum(self.axes) != features:
            raise ValueError(
                f"axes must be three even numbers whose sum is the {features} features "
                f"of a head, got {self.axes}."
            )
        if self.variant not in get_args(Variant):
            raise ValueError(
                f"variant must be one of {', '.join(get_args(Variant))}, got "
                f"{self.variant!r}."
            )
        if not self.guidance > 0:
            raise ValueError(
                f"guidance must be > 0, got {self.guidance}; the default is 3.5."
            )
        check_size(self.input_size, PATCH)

    @property
    def family(self) -> str:
        """Name of the family in files of prompts."""
        return "flux1"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.num_double + self.num_single

    @property
    def qk_norm(self) -> bool:
        """Queries and keys have RMS norms."""
        return True

    @property
    def num_tokens(self) -> int:
        """Tokens of one latent."""
        height, width = self.input_size
        return height * width // PATCH**2

    @classmethod
    def named(cls, name: str, **changes: Any) -> FluxConfig:
        """A published shape, ``"Flux.1-dev"`` say.

        Args:
            name: one of ``NAMES``.
            changes: other fields.

        Raises:
            ValueError: for an unknown name, with the nearest known one.
        """
        if name not in NAMES:
            raise unknown_name(name, NAMES)
        return cls(**{"variant": _VARIANTS[name]} | changes)

    def for_image(self, height: int, width: int) -> FluxConfig:
        """The same model for images of another size in pixels.

        Raises:
            ValueError: unless both are multiples of 16.
        """
        return dataclasses.replace(self, input_size=latent_size(height, width))
