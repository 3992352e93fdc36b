"""Configuration of the training of toy denoisers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.training.block_mlp import BlockKind, NetworkConfig, check_block
from gmm_guidance.training.fit import FitConfig, at_least, fraction, positive

Points = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainingConfig(FitConfig):
    """Configuration of ``train_denoiser``: further fields are those of ``FitConfig``.

    Attributes:
        width: features of the network.
        num_blocks: residual blocks of the network.
        prediction: what the network predicts, ``"edm"``, ``"epsilon"``, ``"velocity"``
            or ``"x0"``; see ``ScaledPrediction``.
        block: kind of the blocks, ``"prenorm"``, ``"plain"``, ``"adaln_zero"`` or
            ``"attention"``; see ``NetworkConfig``.
        target: what the network regresses on: ``"samples"``, the clean samples, as in
            practice; or ``"exact"``, the closed-form denoiser, which has no noise.
        noise: distribution of the noise levels in training: ``"log_normal"``, around
            the scale of the data; or ``"ddpm"``, the levels of a uniformly random step
            of the default ``DDPM`` chain (linear betas), of data left as they are.
        log_sigma_offset: mean of ``ln(sigma / data scale)`` if log-normal.
        log_sigma_std: its standard deviation, > 0.
        block_dropout: stochastic depth (Huang et al. 2016, arXiv 1603.09382):
            probability, in [0, 1), that a training sample skips a block; the same for
            all blocks but the first, which is never skipped. Outputs are not rescaled,
            neither in training nor later: a dropped block of S² is one that training
            has seen dropped.
        num_points: size of a finite training set, drawn once from the mixture for each
            seed, from which batches are drawn with replacement; ``None`` for new
            samples in each batch.

    Raises:
        ValueError: for values out of these ranges.
    """

    width: int = 64
    num_blocks: int = 8
    prediction: Literal["edm", "epsilon", "velocity", "x0"] = "edm"
    block: BlockKind = "prenorm"
    target: Literal["samples", "exact"] = "samples"
    noise: Literal["log_normal", "ddpm"] = "log_normal"
    log_sigma_offset: float = -0.8
    log_sigma_std: float = 1.6
    block_dropout: float = 0.0
    num_points: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.prediction not in ("edm", "epsilon", "velocity", "x0"):
            raise ValueError(
                f"prediction must be 'edm', 'epsilon', 'velocity' or 'x0', got "
                f"{self.prediction!r}."
            )
        check_block(self.block, self.width)
        if self.target not in ("samples", "exact"):
            raise ValueError(
                f"target must be 'samples' or 'exact', got {self.target!r}."
            )
        if self.noise not in ("log_normal", "ddpm"):
            raise ValueError(
                f"noise must be 'log_normal' or 'ddpm', got {self.noise!r}."
            )
        positive("log_sigma_std", self.log_sigma_std)
        fraction("block_dropout", self.block_dropout)
        if self.num_points is not None:
            at_least("num_points", self.num_points, 1)

    @classmethod
    def quick(cls, **fields: Any) -> TrainingConfig:
        """A small configuration, to try things out.

        The network is small and its training short, so that its error is larger than
        that of the defaults, which take a minute on a processor of two cores.

        Args:
            **fields: fields that replace those of the quick configuration.
        """
        own: dict[str, Any] = {
            "snapshots": (1000,),
            "batch_size": 256,
            "width": 32,
            "num_blocks": 4,
        }
        return cls(**own | fields)

    def network(self, data: GaussianMixture | Points) -> NetworkConfig:
        """The network for the data: its dimension, classes, mean and scale.

        Args:
            data: a mixture, or samples ``[n, d]`` and labels ``[n]``, whose number of
                classes is the largest label plus one.

        Raises:
            TypeError: for other data.
            ValueError: as ``train_denoisers``.
        """
        if isinstance(data, GaussianMixture):
            dim, num_labels = data.dim, data.num_labels
            mean, scale = np.asarray(data.mean()), float(data.scale)
        else:
            samples, labels = as_points(data)
            dim, num_labels = samples.shape[1], int(labels.max()) + 1
            mean = samples.mean(0, np.float64)
            scale = float(np.sqrt(samples.var(0, np.float64).mean()))
        return NetworkConfig(
            dim=dim,
            num_labels=num_labels,
            width=self.width,
            num_blocks=self.num_blocks,
            data_scale=scale,
            data_mean=tuple(float(v) for v in mean),
            prediction=self.prediction,
            block=self.block,
        )


def as_points(data: Any) -> Points:
    """Samples ``[n, d]``, float32, and labels ``[n]``, int32, checked.

    Raises:
        TypeError: for anything but a pair.
        ValueError: for other shapes or types, or numbers that are not finite.
    """
    try:
        samples, labels = (np.asarray(a) for a in data)
    except (TypeError, ValueError):
        raise TypeError(
            f"data must be a GaussianMixture or a pair of samples [n, d] and "
            f"labels [n], got {type(data).__name__}."
        ) from None
    if samples.ndim != 2 or 0 in samples.shape or samples.dtype.kind not in "fiu":
        raise ValueError(
            f"samples must be numbers of shape [n, d], n and d at least 1, got "
            f"{samples.dtype} {samples.shape}; reshape others to vectors."
        )
    if labels.shape != samples.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be {len(samples)} integers, one for each sample, got "
            f"{labels.dtype} {labels.shape}."
        )
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(samples).all(1))
    if len(bad):
        raise ValueError(
            f"samples must be finite float32 numbers, but {len(bad)} of "
            f"{len(samples)} are not, the first of them at index {bad[0]}; leave them "
            f"out or rescale the data."
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be at least 0, got {labels.min()}.")
    if (samples == samples[0]).all():
        raise ValueError("samples must differ, but all are the same point.")
    return samples, labels.astype(np.int32)
