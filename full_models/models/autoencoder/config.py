"""Shape of the decoder, and its reading from a diffusers ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

from full_models.models.family import DType, check_counts

_MOST_LEVELS = 10  # a file that says more is damaged
_WIDEST = 100_000


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
        widths, groups = self.block_out_channels, self.norm_num_groups
        counts = ("latent_channels", "out_channels", "layers_per_block")
        check_counts(self, (*counts, "norm_num_groups"))
        checks = {
            "block_out_channels": (
                lambda c: (
                    0 < len(c) <= _MOST_LEVELS
                    and all(_is_count(w) and w % groups == 0 for w in widths)
                ),
                f"1 to {_MOST_LEVELS} multiples of norm_num_groups={groups}",
            ),
            "scaling_factor": (lambda value: _is_number(value) and value > 0, "> 0"),
            "shift_factor": (
                lambda value: value is None or _is_number(value),
                "a number or None",
            ),
            "use_post_quant_conv": (lambda v: isinstance(v, bool), "True or False"),
            "mid_block_add_attention": (lambda v: isinstance(v, bool), "True or False"),
            "compute_dtype": (
                lambda value: value in get_args(DType),
                "'float32' or 'bfloat16'",
            ),
        }
        for name, (holds, what) in checks.items():
            if not holds(value := getattr(self, name)):
                raise ValueError(f"{name} must be {what}, got {value!r}.")

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
    return (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _WIDEST
    )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
