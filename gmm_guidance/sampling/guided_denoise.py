"""The guided denoiser at given points, outside of any sampler."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import evaluate_passes, is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.guidance.renoised import Renoised
from gmm_guidance.guidance.rule import GuidanceRule, full_precision


def guided_denoise(
    denoiser: Denoiser,
    guidance: GuidanceRule,
    x: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The value of a denoiser under a rule; the guided score is ``(D - x) / sigma^2``.

    A rule with a window acts as inside of it, a rule with state as at its start.

    Args:
        denoiser: the denoiser.
        guidance: the rule.
        x: noisy samples ``[n, ...]``.
        sigma: noise level > 0, a scalar.
        label: ``None``, an integer, or ``[n]`` integers.
        key: for random masks; a fixed one by default. ``num_masks="all"`` needs none.

    Returns:
        Guided denoised samples, float32 or better, of x's shape.

    Raises:
        ValueError: if the rule needs a label and there is none.
        TypeError: if the rule drops blocks of a denoiser without blocks.
    """
    if label is None and guidance.needs_label:
        raise ValueError(
            f"{type(guidance).__name__} guides towards a label, got label=None."
        )
    x = jnp.asarray(x)
    if label is not None:
        label = jnp.broadcast_to(jnp.asarray(label, jnp.int32), x.shape[:1])
    arrays, static = split((denoiser, guidance))
    key = jax.random.key(0) if key is None else key
    return _guided(static, arrays, x, jnp.asarray(sigma, x.dtype), label, key)


@functools.partial(jax.jit, static_argnums=0)
def _guided(static: Static, arrays: list[Any], x, sigma, label, key) -> jax.Array:
    denoiser, rule = join(arrays, static)
    return guided_at(denoiser, rule, x, sigma, label, key, jnp.uint32(0))


def guided_at(
    denoiser: Any,
    rule: GuidanceRule,
    x: jax.Array,
    sigma: jax.Array,
    label: jax.Array | None,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """``guided_denoise`` inside a traced program, with the masks of a step."""
    num_blocks = denoiser.num_blocks if is_block_stack(denoiser) else None
    index = jnp.arange(x.shape[0], dtype=jnp.uint32)
    draws = rule.draw(key, step, jnp.uint32(0), num_blocks, index)
    passes = rule.passes(label, draws)
    outputs = jnp.zeros((0, *x.shape), x.dtype)
    if passes:
        outputs = evaluate_passes(denoiser, x, sigma, passes)
    guided, _ = rule.combine(full_precision(outputs), x, sigma, rule.init(x))
    return guided.denoised if isinstance(guided, Renoised) else guided
