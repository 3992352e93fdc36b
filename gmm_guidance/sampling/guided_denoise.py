"""The guided denoiser value at given points, outside of any sampler."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_labels, as_samples, as_sigma, check_key
from gmm_guidance._runtime.hooks import explaining_branches
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import check_denoiser, evaluate_passes
from gmm_guidance.blocks.stack import MEMBERS, check_members, is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser, Renoised
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    check_rule,
    expected_passes,
    full_precision,
    needs_label,
    run_combine,
    run_passes,
)


def guided_denoise(
    denoiser: Denoiser,
    guidance: GuidanceRule,
    x: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The value of a denoiser under a rule.

    A rule with a window acts as inside it, a rule with state as at its start.

    Args:
        denoiser: the denoiser.
        guidance: the rule.
        x: noisy samples ``[n, ...]``.
        sigma: noise level > 0, a scalar.
        label: ``None``, an integer, or ``[n]`` integers.
        key: for random masks; a fixed one by default. ``num_masks="all"`` needs none.

    Returns:
        Guided denoised samples of x's shape, float32 or better.

    Raises:
        ValueError: for samples of another shape than the denoiser's, a sigma that is
            not > 0, labels out of range, or if the rule needs a label and there is
            none.
        TypeError: for arguments of another kind, or if the rule drops blocks of a
            denoiser without blocks.
    """
    check_rule(guidance)
    x, sigma, label, key = point_arguments(denoiser, x, sigma, label, key)
    check_label(label, denoiser, (guidance,), guidance)
    arrays, static = split((denoiser, guidance))
    check_blocks(denoiser, (guidance,))
    with explaining_branches():
        return _guided(static, arrays, x, sigma, label, key)


def guided_score(
    denoiser: Denoiser,
    guidance: GuidanceRule,
    x: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The score under a rule, ``(D - x) / sigma^2`` with D of ``guided_denoise``.

    With an exact denoiser and no guidance it is the gradient of the log density of the
    noised class. Arguments and errors are those of ``guided_denoise``.

    Returns:
        Guided scores of x's shape, float32 or better.
    """
    value = guided_denoise(denoiser, guidance, x, sigma, label, key=key)
    points = as_samples(x)
    return (value[..., : points.shape[-1]] - points) / as_sigma(sigma, value.dtype) ** 2


def point_arguments(
    denoiser: Any, x: Any, sigma: Any, label: Any, key: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """Checked arguments of an evaluation at given points: x, sigma, label, key.

    Integer points become floats, so that sigma remains what it is.
    """
    check_denoiser(denoiser)
    x = as_samples(x, getattr(denoiser, "sample_shape", None))
    sigma = as_sigma(sigma, x.dtype)
    label = as_labels(
        label,
        x.shape[:1],
        getattr(denoiser, "num_labels", None),
        null_allowed=getattr(denoiser, "null_label", True),
    )
    key = jax.random.key(0) if key is None else key
    check_key(key)
    return x, sigma, label, key


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
    index = jnp.arange(x.shape[0], dtype=jnp.uint32)
    draws = rule.draw(
        RandomDraws(key, step, jnp.uint32(0), num_blocks_of(denoiser), index)
    )
    _, outputs = rule_outputs(rule, denoiser, x, sigma, label, draws)
    guided, _ = run_combine(rule, outputs, x, sigma, rule.init(x))
    return guided.denoised if isinstance(guided, Renoised) else guided


def rule_outputs(
    rule: GuidanceRule,
    denoiser: Any,
    x: jax.Array,
    sigma: jax.Array,
    label: jax.Array | None,
    draws: Any,
) -> tuple[Any, Any]:
    """The passes of a rule, and the same tree with their denoised samples."""
    passes = run_passes(rule, label, draws)
    return passes, full_precision(evaluate_passes(denoiser, x, sigma, passes), x)


def num_blocks_of(denoiser: Any) -> int | None:
    """Depth of a stack of blocks, ``None`` for any other denoiser."""
    return denoiser.num_blocks if is_block_stack(denoiser) else None


def check_blocks(denoiser: Any, rules: tuple[GuidanceRule, ...]) -> None:
    """Raise ``TypeError`` if rules drop blocks of a stack that lacks a member."""
    if num_blocks_of(denoiser) is not None or not any(
        hasattr(denoiser, name) for name in MEMBERS
    ):
        return
    for rule in rules:
        try:
            expected_passes(rule, None, object())
        except TypeError:
            check_members(denoiser)


def check_label(
    label: Any,
    denoiser: Any,
    rules: tuple[GuidanceRule, ...],
    guidance: GuidanceRule,
) -> None:
    """Raise ``ValueError`` if a rule contrasts the label with none, but has no label.

    Args:
        label: the label, or ``None``.
        denoiser: the denoiser.
        rules: the rule as it acts in the run.
        guidance: the rule, for the message.
    """
    if label is None and any(needs_label(r, num_blocks_of(denoiser)) for r in rules):
        raise ValueError(
            f"{type(guidance).__name__} guides towards a label, got label=None. Give a "
            f"label, or use Unguided() for unconditional samples."
        )
