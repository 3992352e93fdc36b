"""What a denoiser is, what a model made of blocks is, and the exact denoiser.

The library has one currency: ``denoiser(x, sigma, label) -> D``, the posterior mean of
the clean sample for ``x = x0 + sigma * noise``. Any callable with this signature is a
denoiser. One that is also a ``BlockStack`` lets guidance rules drop its blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

from gmm_guidance.mixture import GaussianMixture, Label
from gmm_guidance.rows import read_rows, run_rows


class Denoiser(Protocol):
    """The posterior mean ``E[x0 | x, label]`` under noise of level ``sigma``.

    Optional attributes that the library uses where they exist: ``sample_shape``, the
    shape of one sample; ``num_labels``, the number of classes; ``denoise_rows(x, sigma,
    labels)``, several labels at once, where that is cheaper than one by one.
    """

    def __call__(self, x: jax.Array, sigma: jax.Array, label: Any) -> jax.Array:
        """Denoise.

        Args:
            x: noisy samples, array of shape ``[n, ...]``.
            sigma: noise level > 0, a scalar or ``[n]``.
            label: ``None`` (no condition) or integers of shape ``[n]``.

        Returns:
            Denoised samples, same shape as ``x``.
        """
        ...


@runtime_checkable
class BlockStack(Protocol):
    """A denoiser made of a sequence of residual blocks, any of which can be dropped.

    Dropping a block means that its output is its input. Parameters of the blocks are
    stacked on a leading axis and chosen by a traced index, so that every choice of
    dropped blocks runs in one compiled program. ``hidden`` and ``context`` may be any
    pytrees of arrays with leading axis ``n``.
    """

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        ...

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """The state that enters block 0, and what all blocks are conditioned on."""
        ...

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after block ``index`` (may be traced), of the same structure."""
        ...

    def readout(
        self, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
    ) -> jax.Array:
        """The denoised samples, from the state that leaves the last block."""
        ...


def run_blocks(
    model: BlockStack, x: jax.Array, sigma: jax.Array, label: Any
) -> jax.Array:
    """One plain pass through all blocks: the definition of a ``BlockStack``'s value."""
    embedded = model.embed(x, sigma, label)
    rows: Any = jax.tree.map(lambda a: a[None], embedded)
    hidden, context = run_rows(model, rows[0], rows[1])
    return read_rows(model, hidden, context, x, sigma)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactDenoiser:
    """The closed-form denoiser of a Gaussian mixture: perfect guidance's ingredients.

    ``None`` and the null label ``mixture.num_labels`` both mean "no condition".
    """

    mixture: GaussianMixture

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(d,)``."""
        return (self.mixture.dim,)

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.mixture.num_labels

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Label) -> jax.Array:
        """``E[x0 | x, label]``, Eq. 4 of ``gmm_guidance.mixture``: shape ``[n, d]``."""
        return self.mixture.denoise(x, sigma, label)

    def denoise_rows(
        self, x: jax.Array, sigma: ArrayLike, labels: Sequence[Label]
    ) -> jax.Array:
        """Several labels at the price of little more than one: ``[row, n, d]``."""
        return self.mixture.denoise_rows(x, sigma, labels)
