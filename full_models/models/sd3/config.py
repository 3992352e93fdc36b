"""Shapes of the published SD3 and SD3.5 models, and of any other of their kind."""

from __future__ import annotations

import dataclasses
from typing import Any

from full_models.models.attention import Implementation
from full_models.models.family import DType, unknown_name
from full_models.models.text_to_image import check_config, check_size, latent_size
from gmm_guidance.diffusion.parameterization import PredictionName
from gmm_guidance.diffusion.process import Process, RectifiedFlow

_LARGE = dict(width=2432, depth=38, num_heads=38, qk_norm=True, table_size=192)
_SHAPES: dict[str, dict[str, Any]] = {
    "SD3-medium": dict(width=1536, depth=24, num_heads=24, table_size=192),
    "SD3.5-medium": dict(
        width=1536, depth=24, num_heads=24, table_size=384, qk_norm=True, num_dual=13
    ),
    "SD3.5-large": _LARGE,
    "SD3.5-large-turbo": _LARGE | dict(turbo=True),
}
NAMES = tuple(_SHAPES)


@dataclasses.dataclass(frozen=True)
class SD3Config:
    """Shape of an SD3 transformer; the defaults are those of SD3-medium.

    Attributes:
        input_size: height and width of a latent (pixels / 8), multiples of
            ``patch_size`` and at most ``patch_size * table_size``.
        in_channels: channels of a latent.
        patch_size: side of a patch.
        width: features of a token, a multiple of ``num_heads``.
        depth: number of blocks, at least 2; the text ends in the last.
        num_heads: attention heads.
        text_width: features of a text token.
        pooled_width: features of the pooled text.
        qk_norm: whether queries and keys have RMS norms (SD3.5).
        num_dual: number of blocks, from the first, whose image has a second attention
            to itself (SD3.5-medium: 13), below ``depth``.
        table_size: side of the stored table of positions, of which the center is used.
        turbo: whether the model is distilled for four steps without CFG.
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
    patch_size: int = 2
    width: int = 1536
    depth: int = 24
    num_heads: int = 24
    text_width: int = 4096
    pooled_width: int = 2048
    qk_norm: bool = False
    num_dual: int = 0
    table_size: int = 192
    turbo: bool = False
    process: Process = RectifiedFlow()
    prediction: PredictionName = "velocity"
    compute_dtype: DType = "float32"
    attention: Implementation = "auto"

    def __post_init__(self):
        object.__setattr__(self, "input_size", tuple(self.input_size))
        check_config(
            self,
            ("in_channels", "patch_size", "text_width", "pooled_width", "table_size"),
        )
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, got {self.depth}.")
        if not 0 <= self.num_dual < self.depth:
            raise ValueError(
                f"num_dual must be in 0..{self.depth - 1}, got {self.num_dual}; the "
                f"last block has no second attention."
            )
        check_size(self.input_size, self.patch_size, self.table_size)

    @property
    def family(self) -> str:
        """Name of the family in files of prompts."""
        return "sd3"

    @property
    def num_tokens(self) -> int:
        """Tokens of one latent."""
        height, width = self.input_size
        return height * width // self.patch_size**2

    @classmethod
    def named(cls, name: str, **changes: Any) -> SD3Config:
        """A published shape, ``"SD3.5-medium"`` say.

        Args:
            name: one of ``NAMES``.
            changes: other fields.

        Raises:
            ValueError: for an unknown name, with the nearest known one.
        """
        if name not in NAMES:
            raise unknown_name(name, NAMES)
        return cls(**_SHAPES[name] | changes)

    def for_image(self, height: int, width: int) -> SD3Config:
        """The same model for images of another size in pixels.

        Raises:
            ValueError: unless both are multiples of 16, and not above the table.
        """
        return dataclasses.replace(self, input_size=latent_size(height, width))
