"""Passes, and the evaluator that computes a set of them at least cost.

A weak pass equals the full pass of the same label up to its first perturbed block. So
the full passes run as rows of one batch, and each weak pass joins them there as one
more row, whose chosen blocks are left out or perturbed:

    blocks      0 .. first           first .. L
    rows        uncond, cond         uncond, cond, weak

Rows live on their own leading axis ``[row, n, ...]``: merging them into the sample
axis would move activations between devices when the samples are sharded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import TraceContextError

from gmm_guidance._runtime.hooks import name_of
from gmm_guidance.blocks.perturbation import Perturbation, check_kind
from gmm_guidance.blocks.shared_prefix import (
    WeakRows,
    read_rows,
    run_full,
    run_joined,
)
from gmm_guidance.blocks.stack import BlockStack, is_block_stack, run_embed
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """One evaluation that a guidance rule asks for.

    Attributes:
        label: the condition, integers of shape ``[n]``, or ``None`` for no condition.
        drop: blocks to leave out, ascending indices ``[k]`` padded at the end with
            ``num_blocks``; or ``[n, k]``, a set for each sample; or ``None``. The short
            form of ``perturb=Perturbation("drop", blocks)``.
        model: another denoiser to evaluate, or ``None`` for the one being guided.
        perturb: how chosen blocks are perturbed, or ``None``.

    Raises:
        ValueError: if both ``drop`` and ``perturb`` are given.
    """

    label: Any
    drop: jax.Array | None = None
    model: Any = None
    perturb: Perturbation | None = None

    def __post_init__(self):
        if self.drop is not None and self.perturb is not None:
            raise ValueError(
                "a pass has one perturbation; give drop=blocks or perturb=, not both."
            )

    @property
    def perturbation(self) -> Perturbation | None:
        """The perturbation of a weak pass; ``None`` for a full pass."""
        return self.perturb if self.drop is None else Perturbation("drop", self.drop)


def evaluate_passes(model: Denoiser, x: jax.Array, sigma: jax.Array, tree: Any) -> Any:
    """Evaluate passes on the same samples, sharing what they have in common.

    Values equal those of separate evaluations; on the CPU bit for bit, where each row
    is computed in the shapes it has alone. Passes of a model without perturbed blocks
    and with the same label object are run once.

    Args:
        model: the denoiser being guided.
        x: noisy samples, array of shape ``[n, ...]``.
        sigma: noise level, a scalar or ``[n]``.
        tree: any pytree of ``Pass``.

    Returns:
        The same tree with denoised samples ``[n, ...]`` in the places of the passes.

    Raises:
        TypeError: if a pass perturbs blocks of a model that is not a ``BlockStack``, or
            a model is not callable.
        ValueError: for a kind of perturbation that the blocks of the model do not have.
    """
    passes, structure = jax.tree.flatten(tree, lambda leaf: isinstance(leaf, Pass))
    outputs: list[Any] = [None] * len(passes)
    for other in _distinct([p.model for p in passes]):
        rows = [i for i, p in enumerate(passes) if p.model is other]
        target = model if other is None else other
        values = _evaluate_on(target, x, sigma, [passes[i] for i in rows])
        for i, value in zip(rows, values, strict=True):
            outputs[i] = value
    return jax.tree.unflatten(structure, outputs)


def check_denoiser(model: Any) -> None:
    """Raise ``TypeError`` unless an argument can be evaluated as a denoiser."""
    if isinstance(model, type):
        raise TypeError(
            f"a denoiser must be an object, got the class {model.__name__}; write "
            f"{model.__name__}(...)."
        )
    if isinstance(model, GaussianMixture):
        raise TypeError(
            "a mixture is no denoiser; wrap it: ExactDenoiser(mixture) is its "
            "posterior mean."
        )
    if not (callable(model) or is_block_stack(model)):
        raise TypeError(
            f"a denoiser must be callable as denoiser(x, sigma, label), but "
            f"{type(model).__name__} is not. A network in its own parameterization "
            f"becomes one by ProcessStack(network, process, prediction)."
        )


def check_output(model: Any, output: Any, x: jax.Array) -> jax.Array:
    """The output of a denoiser, checked to be of the shape of the samples.

    The channels of a learned variance may follow on the last axis.

    Raises:
        TypeError: for anything but an array of floats.
        ValueError: for another shape.
    """
    name = name_of(model)
    if not hasattr(output, "shape") or not hasattr(output, "dtype"):
        raise TypeError(
            f"a denoiser must return one array of the shape of x, {x.shape}, but "
            f"{name} returned {type(output).__name__}; return the denoised samples "
            f"alone."
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(
            f"a denoiser must return floats, but {name} returned {output.dtype}."
        )
    if output.shape not in (x.shape, (*x.shape[:-1], 2 * x.shape[-1])):
        raise ValueError(
            f"a denoiser must return samples of the shape of x, {x.shape}, but {name} "
            f"returned {tuple(output.shape)}; do not squeeze or broadcast them."
        )
    return jnp.asarray(output)


def _evaluate_on(
    model: Any, x: jax.Array, sigma: jax.Array, passes: Sequence[Pass]
) -> list[jax.Array]:
    """All passes of one model."""
    weak = [p for p in passes if p.perturbation is not None]
    if weak and not is_block_stack(model):
        raise TypeError(
            f"this guidance rule drops blocks, but {type(model).__name__} is not a "
            f"BlockStack (num_blocks, embed, block, readout). Use a rule that drops "
            f"none (CFG, AutoGuidance), or make the network a Backbone and wrap it in "
            f"ProcessStack."
        )
    check_denoiser(model)
    full_labels = _distinct([p.label for p in passes if p.perturbation is None])
    if not is_block_stack(model):
        by_label = _evaluate_labels(model, x, sigma, full_labels)
        return [
            check_output(model, by_label[_index(full_labels, p.label)], x)
            for p in passes
        ]

    labels = _distinct([p.label for p in passes])
    rows = _evaluate_rows(model, x, sigma, labels, full_labels, weak)
    check_output(model, rows[0], x)
    return [
        rows[_index(labels, p.label)]
        if p.perturbation is None
        else rows[len(labels) + _index(weak, p)]
        for p in passes
    ]


def _evaluate_labels(model, x, sigma, labels) -> Sequence[jax.Array]:
    if len(labels) > 1 and hasattr(model, "denoise_rows"):
        return model.denoise_rows(x, sigma, labels)
    try:
        return [model(x, sigma, label) for label in labels]
    except TraceContextError as error:
        raise TypeError(
            f"{type(model).__name__} changes its own state when it is called, as "
            f"Dropout and BatchNorm do in training; call its eval() first. ({error})"
        ) from error
    except (jax.errors.TracerArrayConversionError, TypeError) as error:
        error.add_note(
            "A denoiser is traced by JAX. Call NumPy or PyTorch code in it through "
            "jax.pure_callback."
        )
        raise


def _evaluate_rows(
    model: BlockStack,
    x: jax.Array,
    sigma: jax.Array,
    labels: Sequence[Any],
    full_labels: Sequence[Any],
    weak: Sequence[Pass],
) -> jax.Array:
    """Full passes of all labels, then the weak passes that join: ``[row, ...]``."""
    embedded = [run_embed(model, x, sigma, label) for label in labels]
    hidden, context = jax.tree.map(lambda *rows: jnp.stack(rows), *embedded)
    if weak:
        base = np.array([_index(labels, p.label) for p in weak])
        idle = np.array([not _contains(full_labels, label) for label in labels])
        rows = _weak_rows([p.perturbation for p in weak], model)
        hidden, context = run_joined(model, hidden, context, rows, base, idle)
    else:
        hidden = run_full(model, hidden, context)
    return read_rows(model, hidden, context, x, sigma)


def _weak_rows(perturbations: Sequence[Any], model: Any) -> WeakRows:
    """Perturbations as rows, with index sets of one common length."""
    for perturbation in perturbations:
        check_kind(model, perturbation.kind)
    sets = [p.blocks for p in perturbations]
    if len({blocks.ndim for blocks in sets}) > 1:
        raise ValueError(
            "passes must either all drop blocks for the whole batch or all by sample."
        )
    width = max(blocks.shape[-1] for blocks in sets)
    padded = [
        jnp.pad(
            blocks,
            [(0, 0)] * (blocks.ndim - 1) + [(0, width - blocks.shape[-1])],
            constant_values=model.num_blocks,
        )
        for blocks in sets
    ]
    keys = [p.key for p in perturbations if p.key is not None]
    amounts = [0.0 if p.amount is None else p.amount for p in perturbations]
    return WeakRows(
        jnp.stack(padded),
        tuple((p.kind, p.amount is not None) for p in perturbations),
        jnp.stack([jnp.asarray(a, jnp.result_type(float)) for a in amounts]),
        jnp.stack([keys[0] if p.key is None else p.key for p in perturbations])
        if keys
        else None,
    )


def _distinct(items: Sequence[Any]) -> list[Any]:
    """Items without repetition, by identity: arrays have no truth value of equality."""
    result: list[Any] = []
    for item in items:
        if not _contains(result, item):
            result.append(item)
    return result


def _contains(items: Sequence[Any], item: Any) -> bool:
    return any(other is item for other in items)


def _index(items: Sequence[Any], item: Any) -> int:
    return next(i for i, other in enumerate(items) if other is item)
