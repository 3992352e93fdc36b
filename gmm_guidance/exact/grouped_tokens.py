"""Tokens in groups: a Gaussian whose exact denoiser is one attention layer.

``T`` tokens in ``G`` groups of ``m``: ``x_i = B_group + e_i`` with ``B ~ N(mean_label,
between^2)`` and ``e ~ N(0, within^2)``. With ``a = within^2 / (within^2 + sigma^2)``,
``lambda = within^2 + m between^2``, ``c = lambda / (lambda + sigma^2)`` and the uniform
attention ``U`` within groups,

    D_label(x) = a x + (1 - c) mean_label + (c - a) U x.                          (1)

Perturbed attention acts on three orthogonal subspaces: the overall mean (dimension 1),
differences between groups (G - 1) and within groups (T - G).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance.blocks.perturbation import (
    ATTENTION_KINDS,
    BlockPerturbation,
    add_branch,
    perturbed_attention,
    shuffled,
)
from gmm_guidance.blocks.shared_prefix import run_blocks
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


class Variances(NamedTuple):
    """Variances of samples in the three subspaces.

    Attributes:
        mean: of the overall mean, times ``T``.
        between: along a unit vector between groups.
        within: along a unit vector within groups.
    """

    mean: float
    between: float
    within: float


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GroupedTokens:
    """The distribution, and its exact denoiser as a ``BlockStack`` of two blocks.

    Block 0 is pointwise, the first two terms of Eq. 1; block 1 is the attention, with
    every perturbation that an attention has. Both can shuffle the tokens.

    Args:
        num_groups: number of groups, at least 2.
        group_size: tokens in each, at least 2.
        means: of each label, and last of no label, whose distribution is a Gaussian of
            the same covariance.
        between: standard deviation of the group values, > 0.
        within: standard deviation within groups, > 0.
        sharpness: attention logits of tokens of the same group, >= 0; from 40 on the
            attention is uniform within groups, and the denoiser exact.

    Raises:
        ValueError: for values out of range.
    """

    num_groups: int = 3
    group_size: int = 4
    means: tuple[float, ...] = (1.0, -1.0, 0.0)
    between: float = 1.0
    within: float = 0.5
    sharpness: float = 40.0

    def __post_init__(self):
        if min(self.num_groups, self.group_size) < 2:
            raise ValueError("num_groups and group_size must be at least 2.")
        if not (self.between > 0 and self.within > 0 and self.sharpness >= 0):
            raise ValueError("between and within must be > 0, sharpness >= 0.")
        if len(self.means) < 2:
            raise ValueError("means must be of a label or more, and of no label.")

    @property
    def num_blocks(self) -> int:
        """Two: pointwise, then attention."""
        return 2

    @property
    def perturbations(self) -> frozenset[str]:
        """Those of an attention without an MLP."""
        return ATTENTION_KINDS - {"drop_mlp"}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(T,)``."""
        return (self.num_groups * self.group_size,)

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.means) - 1

    def mixture(self) -> GaussianMixture:
        """The classes, equally likely, with full covariances."""
        tokens, size = self.sample_shape[0], self.group_size
        same = np.kron(np.eye(self.num_groups), np.ones((size, size)))
        covariance = self.within**2 * np.eye(tokens) + self.between**2 * same
        means = np.array(self.means[:-1])[:, None] * np.ones(tokens)
        covariances = np.broadcast_to(covariance, (len(means), tokens, tokens))
        return GaussianMixture(means, covariances, labels=np.arange(len(means)))

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """Zeros ``[n, T]``, and tokens, mean, ``a`` and ``c`` of each sample."""
        variance = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]) ** 2
        group = self.within**2 + self.group_size * self.between**2
        a = self.within**2 / (self.within**2 + variance)
        label = self.num_labels if label is None else label
        mean = jnp.asarray(self.means, x.dtype)[label]
        mean = jnp.broadcast_to(mean, x.shape[:1])
        return jnp.zeros_like(x), (x, mean, a, group / (group + variance))

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: Any,
        context: Any,
        perturb: BlockPerturbation | None = None,
    ) -> Any:
        """The state after a block."""
        x, mean, a, c = context

        def pointwise(hidden):
            tokens = shuffled(x[..., None], perturb)[..., 0]
            return hidden + a[:, None] * tokens + ((1.0 - c) * mean)[:, None]

        def attention(hidden):
            def branch():
                codes = np.repeat(np.eye(self.num_groups), self.group_size, axis=0)
                keys = jnp.asarray(codes, x.dtype)[None, :, None]
                keys = jnp.broadcast_to(keys, (x.shape[0], *keys.shape[1:]))
                values = shuffled(x[..., None], perturb)[..., None]
                query = self.sharpness * keys
                mixed = perturbed_attention(_attention, query, keys, values, perturb)
                return (c - a)[:, None] * mixed[..., 0, 0]

            return add_branch(hidden, branch, "attention", perturb)

        return jax.lax.switch(index, [pointwise, attention], hidden)

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after a block."""
        return self.segment_block(0, index, hidden, context)

    def readout(self, hidden: Any, context: Any, x: jax.Array, sigma: Any) -> Any:
        """The state itself."""
        return hidden

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """Denoise ``x`` ``[n, T]`` at ``sigma`` > 0, a scalar or ``[n]``."""
        return run_blocks(self, x, jnp.asarray(sigma), label)

    def variances(
        self,
        kind: str | None = None,
        weight: float = 0.0,
        amount: float = 1.0,
        window: tuple[float, float] = (0.0, np.inf),
    ) -> Variances:
        """Of samples of the probability flow of ``D_c + weight (D_c - D_weak)``.

        From infinite noise, with the attention perturbed, in closed form. Without a
        kind, or with CFG alone, the variances are those of the data.

        Args:
            kind: ``"identity"``, ``"blur"`` (of full amount), ``"drop_attention"``,
                ``"shuffle"`` (of both blocks, anew in each of infinitely many steps),
                or ``None``.
            weight: of the term; 0 = off.
            amount: part of the identity, or of the attention left out.
            window: lowest and highest sigma at which the term acts.

        Raises:
            ValueError: for another kind, a blur or shuffle of another amount, or a
                shuffle down to sigma 0, with which the variances diverge.
        """
        s2 = self.within**2
        group = s2 + self.group_size * self.between**2
        if kind in ("blur", "shuffle") and amount != 1.0:
            raise ValueError(f"a {kind} must have amount 1, got {amount}.")
        low, high = (v**2 for v in window)
        if kind == "shuffle":
            if low <= 0.0:
                raise ValueError(
                    "a shuffle needs a window that ends above sigma 0, since its term "
                    "does not vanish there; use for example window=(0.5, np.inf)."
                )

            def grown(variance: float) -> float:
                gain = 1.0 + variance / low
                gain /= 1.0 + variance / high
                return variance * gain**weight

            return Variances(group, grown(group), grown(s2))
        log = np.log((group + low) / (s2 + low))
        if np.isfinite(high):
            log -= np.log((group + high) / (s2 + high))
        gain = float(np.exp(weight * amount * log))
        match kind:
            case None:
                return Variances(group, group, s2)
            case "identity":
                return Variances(group, group, s2 / gain)
            case "blur":
                return Variances(group, group * gain, s2)
            case "drop_attention":
                return Variances(group * gain, group * gain, s2)
        raise ValueError(
            f"no closed form for {kind!r}; known: identity, blur, drop_attention, "
            f"shuffle."
        )


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits, axis=-1), value)
