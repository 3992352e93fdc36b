"""``ProcessStack``: a network in its own parameterization as a denoiser with blocks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import as_concrete, as_floats
from gmm_guidance._runtime.hooks import name_of
from gmm_guidance._runtime.pytree import one_line_repr
from gmm_guidance.blocks.shared_prefix import run_blocks, run_full
from gmm_guidance.blocks.stack import run_block, run_embed, run_segment_block
from gmm_guidance.diffusion.parameterization import (
    Prediction,
    check_prediction,
    denoised_at_sigma,
    from_sigma_space,
)
from gmm_guidance.diffusion.process import Process


class WrappedStack:
    """Base of a dataclass around a model: the wrapper has what the model has.

    The model is the first field. Members that a subclass does not define are those of
    the model, so that a wrapped ``BlockStack`` is a ``BlockStack``; a subclass that
    changes ``block`` must change ``segment_block`` as well.
    """

    def __getattr__(self, name: str) -> Any:
        inner = dataclasses.fields(self)[0].name  # type: ignore[arg-type]
        if name.startswith("_") or name == inner:
            raise AttributeError(name)
        return getattr(getattr(self, inner), name)

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """Denoise ``x`` ``[n, ...]`` at ``sigma`` > 0, a scalar or ``[n]``.

        The label is ``None`` (no condition) or integers ``[n]``.
        """
        return run_blocks(self, x, jnp.asarray(sigma), label)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["backbone"],
    meta_fields=["process", "prediction", "return_variance"],
)
@dataclasses.dataclass(frozen=True)
class ProcessStack(WrappedStack):
    """A network in its own parameterization as a ``Denoiser`` and a ``BlockStack``.

    The network sees what it was trained on, ``x_t = alpha x`` at its process's own
    time, and its prediction is converted to denoised samples. Both use the
    coefficients of the exact noise level; the time alone is rounded, to integers where
    the process says so (``DDPM(integer_times=True)``).

    A network may return twice the channels of ``x_t`` (its last axis). The further
    ones are those of a learned variance (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq.
    15): for each channel a ``v`` in [-1, 1], a place between the smallest and the
    largest variance of the reverse step.

    Other attributes, such as ``sample_shape``, ``num_labels``, ``segments`` and
    ``block_costs``, are those of the network.

    Args:
        backbone: a ``Backbone``; or any callable ``model(x_t, time, label) ->
            prediction`` with x_t ``[n, ...]``, time ``[n]`` and the label as it came,
            which makes a ``Denoiser`` without blocks.
        process: the process it was trained with.
        prediction: ``"x0"``, ``"epsilon"``, ``"v"``, ``"velocity"``, ``"score"`` or an
            ``ScaledPrediction``.
        return_variance: whether values are the denoised samples followed by the
            variance channels, for ``Ancestral("learned")``; else those are left out.

    Raises:
        ValueError: for an unknown prediction; and, when evaluated, for samples or
            predictions of the wrong shape, sigma <= 0, or variance channels that the
            network does not have.
    """

    backbone: Any
    process: Process
    prediction: Prediction
    return_variance: bool = False

    def __post_init__(self):
        check_prediction(self.prediction)

    def __repr__(self) -> str:
        backbone = repr(self.backbone)
        if "\n" in backbone or len(backbone) > 80:
            backbone = one_line_repr(self.backbone)
        return f"{type(self).__name__}({backbone}, {self.process}, {self.prediction!r})"

    def embed(self, x: jax.Array, sigma: ArrayLike, label: Any) -> tuple[Any, Any]:
        """The network's state and context, of samples ``[n, ...]`` at sigma."""
        return run_embed(self.backbone, *self._input(x, sigma), label)

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after block ``index``, counted through all segments."""
        return run_block(self.backbone, index, hidden, context)

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: Any,
        context: Any,
        perturb: Any = None,
    ) -> Any:
        """The state after block ``index`` of a segment, perhaps perturbed."""
        return run_segment_block(
            self.backbone, segment, index, hidden, context, perturb
        )

    def readout(
        self, hidden: Any, context: Any, x: jax.Array, sigma: ArrayLike
    ) -> jax.Array:
        """Denoised samples, the shape of x, or with the variance channels."""
        return self._value(self.backbone.readout(hidden, context), x, sigma)

    def with_variance(self) -> ProcessStack:
        """The stack with ``return_variance``."""
        return dataclasses.replace(self, return_variance=True)

    def predict(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """What the network itself predicts at ``x`` and sigma, for training.

        Learned variances are included. A backbone may define ``predict(x_t, time,
        label)``, a plain forward pass whose gradient is cheaper than that of blocks
        chosen by an index.
        """
        x_t, time = self._input(x, sigma)
        if hasattr(self.backbone, "predict"):
            return self.backbone.predict(x_t, time, label)
        if not hasattr(self.backbone, "num_blocks"):
            return self.backbone(x_t, time, label)
        hidden, context = self.backbone.embed(x_t, time, label)
        rows: Any = jax.tree.map(lambda a: a[None], (hidden, context))
        hidden = run_full(self, *rows)
        return self.backbone.readout(jax.tree.map(lambda a: a[0], hidden), context)

    def forward(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """The denoised samples by the forward pass of ``predict``."""
        return self._value(self.predict(x, sigma, label), x, sigma)

    @override
    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        if hasattr(self.backbone, "num_blocks"):
            return run_blocks(self, x, jnp.asarray(sigma), label)
        return self._value(self.backbone(*self._input(x, sigma), label), x, sigma)

    def _input(self, x: jax.Array, sigma: ArrayLike) -> tuple[jax.Array, jax.Array]:
        shape = getattr(self.backbone, "sample_shape", None)
        if shape is not None and x.shape[1:] != tuple(shape):
            wanted = ", ".join(str(size) for size in shape)
            raise ValueError(
                f"x must have shape [n, {wanted}], got {x.shape}; samples of this "
                f"network have the shape {tuple(shape)}, channels last."
            )
        levels = as_concrete(sigma)
        if levels is not None and not (levels > 0).all():
            raise ValueError(f"sigma must be > 0, got {levels.min()}.")
        x_t, time = from_sigma_space(self.process, x, sigma)
        return x_t, jnp.broadcast_to(time, x_t.shape[:1])

    def _value(
        self, prediction: jax.Array, x: jax.Array, sigma: ArrayLike
    ) -> jax.Array:
        channels = x.shape[-1]
        has_variance = jnp.shape(prediction) == (*x.shape[:-1], 2 * channels)
        if not has_variance and jnp.shape(prediction) != x.shape:
            hook = ".readout" if hasattr(self.backbone, "num_blocks") else ""
            raise ValueError(
                f"{name_of(self.backbone)}{hook} must return a prediction of the shape "
                f"of x_t, {x.shape}, or with twice its channels, got "
                f"{jnp.shape(prediction)}."
            )
        if self.return_variance and not has_variance:
            raise ValueError(
                f"return_variance needs a network with a learned variance, which "
                f"returns {2 * channels} channels for samples of {channels}, got a "
                f"prediction of shape {prediction.shape}; use a fixed variance, "
                f"Ancestral('posterior')."
            )
        mean = prediction[..., :channels] if has_variance else prediction
        denoised = denoised_at_sigma(self.process, mean, x, sigma, self.prediction)
        if not self.return_variance:
            return denoised
        variance = as_floats(prediction[..., channels:]).astype(denoised.dtype)
        return jnp.concatenate([denoised, variance], axis=-1)
