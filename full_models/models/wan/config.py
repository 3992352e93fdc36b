"""Shapes of Wan 2.1's text-to-video transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

from full_models.models.family import DType, check_counts, unknown_name
from gmm_guidance.diffusion.parameterization import PREDICTIONS, PredictionName
from gmm_guidance.diffusion.process import Process, RectifiedFlow

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
PATCH = 2
LONGEST = 1024  # positions of an axis in the published tables

_SIZES: dict[str, dict[str, Any]] = {
    "Wan2.1-1.3B": dict(depth=30, width=1536, num_heads=12, mlp_width=8960),
    "Wan2.1-14B": dict(depth=40, width=5120, num_heads=40, mlp_width=13824),
}
NAMES = tuple(_SIZES)


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """Shape of a Wan 2.1 text-to-video transformer, and the size of its videos.

    Attributes:
        latent_shape: frames, height and width of a latent, in latents of the VAE
            (``(frames - 1) / 4 + 1``, pixels / 8); height and width are even, all at
            most 1024 patches. By default 81 frames of 480 x 832 pixels.
        in_channels: channels of a latent.
        width: features of a token, ``num_heads`` times an even head dimension >= 6.
        depth: number of blocks, at least 1.
        num_heads: attention heads.
        mlp_width: width inside the MLP.
        text_width: features of a text token.
        text_length: tokens of a prompt; shorter ones are padded with zeros.
        process: noise process of the training.
        prediction: what the network predicts.
        compute_dtype: type of matrix products. Norms, modulation, softmax, the residual
            stream and the readout are float32 in any case.

    Raises:
        ValueError: for values out of these ranges.
    """

    latent_shape: tuple[int, int, int] = (21, 60, 104)
    in_channels: int = 16
    width: int = 1536
    depth: int = 30
    num_heads: int = 12
    mlp_width: int = 8960
    text_width: int = 4096
    text_length: int = 512
    process: Process = RectifiedFlow()
    prediction: PredictionName = "velocity"
    compute_dtype: DType = "float32"

    def __post_init__(self):
        counts = (
            "in_channels",
            "width",
            "depth",
            "num_heads",
            "mlp_width",
            "text_width",
            "text_length",
        )
        check_counts(self, counts)
        shape = self.latent_shape
        if len(shape) != 3 or any(
            size < 1 or size > LONGEST * patch or size % patch
            for size, patch in zip(shape, (1, PATCH, PATCH), strict=True)
        ):
            raise ValueError(
                f"latent_shape must be (frames, height, width) of latents with even "
                f"height and width, at most {LONGEST} patches each, got {shape}."
            )
        if self.width % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(
                f"width must be num_heads={self.num_heads} times an even number of at "
                f"least 6 (positions are rotations of pairs on three axes), got "
                f"{self.width}."
            )
        if not isinstance(self.process, Process):
            raise ValueError(
                f"process must be a noise process such as RectifiedFlow(), got "
                f"{self.process!r}."
            )
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}, got "
                f"{self.prediction!r}."
            )
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"compute_dtype must be 'float32' or 'bfloat16', got "
                f"{self.compute_dtype!r}."
            )

    @property
    def head_dim(self) -> int:
        """Features of an attention head."""
        return self.width // self.num_heads

    @property
    def num_tokens(self) -> int:
        """Tokens of one sample."""
        frames, height, width = self.latent_shape
        return frames * (height // PATCH) * (width // PATCH)

    @classmethod
    def named(cls, name: str, **changes: Any) -> WanConfig:
        """A published shape, ``"Wan2.1-1.3B"`` or ``"Wan2.1-14B"``.

        Args:
            name: the name.
            changes: other fields.

        Raises:
            ValueError: for an unknown name, with the nearest known one.
        """
        if name not in NAMES:
            raise unknown_name(name, NAMES)
        return cls(**_SIZES[name] | changes)

    def for_video(self, frames: int, height: int, width: int) -> WanConfig:
        """The same model for videos of another size.

        Args:
            frames: number of frames, ``4 k + 1``.
            height: in pixels, a multiple of 16.
            width: likewise.

        Raises:
            ValueError: for other sizes, with the nearest ones.
        """
        return self.for_frames(frames).for_image(height, width)

    def for_frames(self, frames: int) -> WanConfig:
        """The same model for another number of frames. Raises as ``for_video``."""
        if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
            below = max(frames - 1, 0) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
            raise ValueError(
                f"frames must be 4 k + 1, got {frames}; use {below} or "
                f"{below + FRAMES_PER_LATENT}."
            )
        count = (frames - 1) // FRAMES_PER_LATENT + 1
        shape = (count, *self.latent_shape[1:])
        return dataclasses.replace(self, latent_shape=shape)

    def for_image(self, height: int, width: int) -> WanConfig:
        """The same model for frames of another size. Raises as ``for_video``."""
        multiple = PIXELS_PER_LATENT * PATCH
        for name, size in (("height", height), ("width", width)):
            if size < multiple or size % multiple:
                below = max(size // multiple, 1) * multiple
                raise ValueError(
                    f"{name} must be a multiple of {multiple} pixels, got {size}; use "
                    f"{below} or {below + multiple}."
                )
        shape = (
            self.latent_shape[0],
            height // PIXELS_PER_LATENT,
            width // PIXELS_PER_LATENT,
        )
        return dataclasses.replace(self, latent_shape=shape)
