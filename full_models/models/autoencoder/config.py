"""Shape of the decoder, and its reading from a diffusers ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from full_models.models.family import DType


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """Shape of a ``KLDecoder``; the defaults are those of Stable Diffusion 1 and 2.

    Attributes:
        latent_channels: channels of a latent.
        out_channels: channels of an image.
        block_out_channels: widths from the image inwards, each a multiple of
            ``norm_num_groups``; each but the last doubles height and width.
        layers_per_block: residual layers of the encoder; the decoder has one more.
        norm_num_groups: groups of the norms.
        scaling_factor: a latent of the diffusion model is the autoencoder's times this.
        shift_factor: subtracted from the autoencoder's latent before (SD3); none by
            default.
        use_post_quant_conv: whether a 1x1 convolution comes first (not in SD3).
        mid_block_add_attention: whether the innermost maps attend to themselves.
        compute_dtype: of convolutions; norms and softmax are float32 in any case.

    Raises:
        ValueError: for values out of these ranges.
    """

    latent_channels: int = 4
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    compute_dtype: DType = "float32"

    def __post_init__(self):
        for name in (
            "latent_channels",
            "out_channels",
            "layers_per_block",
            "norm_num_groups",
        ):
            value = getattr(self, name)
            if not _is_count(value):
                raise ValueError(
                    f"{name} must be a whole number of at least 1, got {value!r}."
                )
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or not all(_is_count(c) and c % groups == 0 for c in widths):
            raise ValueError(
                f"block_out_channels must be multiples of norm_num_groups={groups}, "
                f"got {widths}."
            )
        if not (_is_number(self.scaling_factor) and self.scaling_factor > 0):
            raise ValueError(
                f"scaling_factor must be > 0, got {self.scaling_factor!r}."
            )
        if not (self.shift_factor is None or _is_number(self.shift_factor)):
            raise ValueError(
                f"shift_factor must be a number or None, got {self.shift_factor!r}."
            )
        for name in ("use_post_quant_conv", "mid_block_add_attention"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}.")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype must be 'float32' or 'bfloat16', got "
                f"{self.compute_dtype!r}."
            )

    @property
    def upscaling(self) -> int:
        """Pixels along a side for each of the latent's; 8 by default."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, found: dict[str, Any]) -> KLConfig:
        """From the content of an ``AutoencoderKL``'s ``config.json``.

        Raises:
            ValueError: if a field has a value that this decoder does not implement.
        """
        widths = found.get("block_out_channels", [64])
        if not isinstance(widths, list):
            raise ValueError(f"block_out_channels must be a list, got {widths!r}.")
        implemented = {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "latents_mean": None,
            "latents_std": None,
        }
        for field, wanted in implemented.items():
            value = found.get(field, wanted)
            if value != wanted:
                raise ValueError(
                    f"{field} must be {wanted!r}, got {value!r}; this decoder is of "
                    f"Stable Diffusion's AutoencoderKL alone."
                )
        return cls(
            latent_channels=found.get("latent_channels", 4),
            out_channels=found.get("out_channels", 3),
            block_out_channels=tuple(widths),
            layers_per_block=found.get("layers_per_block", 1),
            norm_num_groups=found.get("norm_num_groups", 32),
            scaling_factor=found.get("scaling_factor", 0.18215),
            shift_factor=found.get("shift_factor"),
            use_post_quant_conv=found.get("use_post_quant_conv", True),
            mid_block_add_attention=found.get("mid_block_add_attention", True),
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
