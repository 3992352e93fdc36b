"""``BlockMLP``: a small residual network whose blocks can be dropped.

Preconditioned as in EDM (Karras et al. 2022, arXiv 2206.00364, Table 1): with the
data's centre ``m`` and scale ``s``,

    D = m + c_skip (x - m) + c_out F(c_in (x - m), ln(sigma) / 4, label),
    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / sqrt(sigma^2 + s^2),

so that the network's input and target have unit variance at every noise level.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.blocks.shared_prefix import run_blocks


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Shape and scale of a ``BlockMLP``.

    Attributes:
        dim: dimension of a sample, at least 1.
        num_labels: number of classes; label ``num_labels`` means "no condition".
        width: features of the residual stream, at least 1.
        num_blocks: residual blocks, at least 1.
        num_frequencies: pairs of sine and cosine that encode the noise level.
        data_scale: root mean square standard deviation of the data, > 0.
        data_mean: centre of the data, ``dim`` numbers; the origin when empty.
    """

    dim: int
    num_labels: int = 1
    width: int = 64
    num_blocks: int = 8
    num_frequencies: int = 16
    data_scale: float = 1.0
    data_mean: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("dim", "num_labels", "width", "num_blocks", "num_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if not (math.isfinite(self.data_scale) and self.data_scale > 0):
            raise ValueError(f"data_scale must be > 0, got {self.data_scale}.")
        if self.data_mean and len(self.data_mean) != self.dim:
            raise ValueError(
                f"data_mean must have {self.dim} numbers, got {len(self.data_mean)}."
            )


class Preconditioning(NamedTuple):
    """EDM's coefficients at a noise level."""

    skip: jax.Array
    out: jax.Array
    input: jax.Array
    noise: jax.Array


def precondition(sigma: jax.Array, data_scale: float) -> Preconditioning:
    """EDM's coefficients (Table 1) for data of standard deviation ``data_scale``."""
    total = sigma**2 + data_scale**2
    root = jnp.sqrt(total)
    return Preconditioning(
        data_scale**2 / total,
        sigma * data_scale / root,
        1.0 / root,
        jnp.log(sigma) / 4.0,
    )


class MLPBlock(nnx.Module):
    """One residual block: ``h + W2 silu(W1 norm(h) + Wc context)``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.condition = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The next state, ``[n, width]``."""
        inner = self.inner(self.norm(hidden)) + self.condition(context)
        return hidden + self.outer(nnx.silu(inner))


class BlockMLP(nnx.Module):
    """A residual network for points, conditioned on noise level and label.

    A ``BlockStack`` and a ``Denoiser``. Parameters of the blocks are stacked on their
    leading axis.

    Args:
        config: shape and scale.
        rngs: Flax random streams; ``nnx.Rngs(jax.random.key(0))``.
    """

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.embed_sample = nnx.Linear(config.dim, width, rngs=rngs)
        self.embed_noise = nnx.Linear(2 * config.num_frequencies, width, rngs=rngs)
        self.embed_label = nnx.Embed(config.num_labels + 1, width, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.num_blocks)
        self.blocks = jax.vmap(lambda key: MLPBlock(width, rngs=nnx.Rngs(key)))(keys)
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.output = nnx.Linear(width, config.dim, rngs=rngs)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.num_blocks

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.config.num_labels

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(dim,)``."""
        return (self.config.dim,)

    def embed(
        self, x: jax.Array, sigma: ArrayLike, label: Any
    ) -> tuple[jax.Array, jax.Array]:
        """State ``[n, width]`` entering block 0, and context ``[n, width]``."""
        x, sigma = self._check(x, sigma)
        c = precondition(sigma, self.config.data_scale)
        hidden = self.embed_sample(c.input * (x - self._mean(x)))
        # Frequencies up to one period per 0.1 in ln(sigma) / 4.
        frequencies = jnp.geomspace(
            0.5, 30.0, self.config.num_frequencies, dtype=x.dtype
        )
        phase = c.noise * frequencies[None]
        features = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
        if label is None:
            label = jnp.full((x.shape[0],), self.config.num_labels, jnp.int32)
        context = self.embed_noise(features) + self.embed_label(label)
        return hidden, nnx.silu(context)

    def block(
        self, index: ArrayLike, hidden: jax.Array, context: jax.Array
    ) -> jax.Array:
        """The state after block ``index``, ``[n, width]``."""
        chosen = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False),
            self.blocks,
        )
        return chosen(hidden, context)

    def readout(
        self, hidden: jax.Array, context: jax.Array, x: jax.Array, sigma: ArrayLike
    ) -> jax.Array:
        """Denoised samples ``[n, dim]``."""
        x, sigma = self._check(x, sigma)
        c = precondition(sigma, self.config.data_scale)
        mean = self._mean(x)
        return mean + c.skip * (x - mean) + c.out * self.output(self.norm(hidden))

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """Denoise ``[n, dim]``; sigma scalar or ``[n]``, label ``[n]`` or ``None``."""
        return run_blocks(self, x, jnp.asarray(sigma, x.dtype), label)

    def _mean(self, x: jax.Array) -> jax.Array:
        mean = self.config.data_mean or (0.0,) * self.config.dim
        return jnp.asarray(mean, x.dtype)[None]

    def _check(self, x: jax.Array, sigma: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """``x`` as ``[n, dim]`` and sigma as ``[1 or n, 1]``."""
        if x.ndim != 2 or x.shape[1] != self.config.dim:
            raise ValueError(
                f"x must have shape [n, {self.config.dim}], got {x.shape}."
            )
        sigma = jnp.asarray(sigma, x.dtype)
        values = as_concrete(sigma)
        if values is not None and not (values > 0).all():
            raise ValueError(f"sigma must be > 0, got {values.min()}.")
        return x, sigma.reshape(-1, 1)
