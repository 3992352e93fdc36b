"""Shapes of the published DiT and SiT models, and of any other of their kind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from full_models.models.family import DType, check_counts, unknown_name
from gmm_guidance.diffusion.parameterization import PREDICTIONS, PredictionName
from gmm_guidance.diffusion.process import DDPM, Process, RectifiedFlow

# Peebles & Xie 2023 (arXiv 2212.09748); Ma et al. 2024 (arXiv 2401.08740).
DIT: dict[str, Any] = dict(process=DDPM(integer_times=True), prediction="epsilon")
SIT: dict[str, Any] = dict(
    process=RectifiedFlow(data_at_one=True), prediction="velocity"
)

# depth, width, heads: Peebles & Xie 2023 (arXiv 2212.09748), Table 1.
_SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
_PATCHES = (2, 4, 8)
_WIDEST = 1_000_000
_FAMILIES = {"DiT": DIT, "SiT": SIT}


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of a diffusion transformer, and the process it was trained on.

    Attributes:
        input_size: height and width of a sample (a latent of the VAE: pixels / 8), a
            multiple of ``patch_size``.
        patch_size: side of a patch, at least 1.
        in_channels: channels of a sample.
        width: features of a token, a multiple of ``num_heads`` and of 4.
        depth: number of blocks, at least 1.
        num_heads: attention heads.
        mlp_ratio: width of the MLP over ``width``.
        num_labels: number of classes; label ``num_labels`` means "no condition".
        null_label: whether the network knows "no condition", as it does if labels were
            dropped in its training. Without it there are no unconditional passes, hence
            no classifier-free guidance.
        learn_sigma: whether the network also returns a variance for each channel.
        process: noise process of the training. DiT's is a DDPM chain at integer times,
            SiT's the straight path from noise at time 0 to data at time 1.
        prediction: what the network predicts: ``"epsilon"`` (DiT), ``"velocity"``
            (SiT), ``"x0"``, ``"v"`` or ``"score"``.
        compute_dtype: type of matrix products. Norms, softmax, the residual stream and
            the network's output are float32 in any case.
        remat: recompute the inside of blocks in the backward pass, to train with less
            memory; sampling needs none.

    Raises:
        ValueError: for values out of these ranges.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_labels: int = 1000
    null_label: bool = True
    learn_sigma: bool = True
    process: Process = DIT["process"]
    prediction: PredictionName = DIT["prediction"]
    compute_dtype: DType = "float32"
    remat: bool = False

    def __post_init__(self):
        counts = (
            "input_size",
            "patch_size",
            "in_channels",
            "width",
            "depth",
            "num_heads",
            "num_labels",
        )
        check_counts(self, counts)
        if self.input_size % self.patch_size:
            size = self.input_size - self.input_size % self.patch_size
            raise ValueError(
                f"input_size must be a multiple of patch_size={self.patch_size}, got "
                f"{self.input_size}; use {max(size, self.patch_size)} or "
                f"{size + self.patch_size} (for a VAE latent: pixels / 8)."
            )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"width must be a multiple of num_heads={self.num_heads} and of 4 "
                f"(sine and cosine of rows and columns), got {self.width}."
            )
        ratio = self.mlp_ratio
        if type(ratio) not in (int, float) or not 1 <= ratio * self.width <= _WIDEST:
            raise ValueError(
                f"mlp_ratio must be a number > 0, and its product with the width at "
                f"most {_WIDEST:,}, got {ratio!r}."
            )
        # Ratios that round to the same width inside the MLP are the same shape.
        object.__setattr__(self, "mlp_ratio", mlp_ratio(self.mlp_width, self.width))
        if not isinstance(self.null_label, bool):
            raise ValueError(
                f"null_label must be True or False, got {self.null_label!r}."
            )
        if not isinstance(self.process, Process):
            raise ValueError(
                f"process must be a noise process such as DDPM(integer_times=True) "
                f"(DiT) or RectifiedFlow(data_at_one=True) (SiT), got {self.process!r}."
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
    def num_embeddings(self) -> int:
        """Rows of the table of labels."""
        return self.num_labels + self.null_label

    @property
    def num_tokens(self) -> int:
        """Tokens of one sample."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        """Channels that the network returns."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def mlp_width(self) -> int:
        """Width inside of the MLP."""
        return int(self.width * self.mlp_ratio)

    @classmethod
    def named(cls, name: str, **changes: Any) -> DiTConfig:
        """A published shape, ``"DiT-XL/2"`` or ``"SiT-B/4"`` say.

        Args:
            name: family (``DiT``, ``SiT``), size (``S``, ``B``, ``L``, ``XL``) and
                patch (2, 4, 8).
            changes: other fields; ``input_size=64`` for 512 pixels.

        Raises:
            ValueError: for an unknown name, with the nearest known one.
        """
        if name not in NAMES:
            raise unknown_name(name, NAMES)
        family, rest = name.split("-")
        size, patch = rest.split("/")
        depth, width, heads = _SIZES[size]
        fields: dict[str, Any] = dict(
            depth=depth,
            width=width,
            num_heads=heads,
            patch_size=int(patch),
        )
        return cls(**fields | _FAMILIES[family] | changes)


NAMES = tuple(
    f"{family}-{size}/{patch}"
    for family in _FAMILIES
    for size in _SIZES
    for patch in _PATCHES
)


def mlp_ratio(inside: int, width: int) -> float:
    """A ratio whose product with ``width`` is ``inside`` after rounding down."""
    ratio = inside / width
    return ratio if int(width * ratio) == inside else math.nextafter(ratio, math.inf)
