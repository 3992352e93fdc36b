"""``train``: the training loop for any model."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gmm_guidance._runtime.checks import as_labels, check_finite, check_key
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.mixture.draw import sample_batch
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sharding.batches import shard_batch
from gmm_guidance.sharding.mesh import as_mesh
from gmm_guidance.training.fit import Fit, FitConfig, Progress, fit
from gmm_guidance.training.loss import denoising_loss
from gmm_guidance.training.train import digest, on_mesh

Loss = Callable[..., jax.Array]


def train(
    key: jax.Array,
    model: Any,
    data: Any,
    config: FitConfig = FitConfig(snapshots=(2000,)),
    *,
    loss: Loss | None = None,
    progress: bool | Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> Fit:
    """Train a model of one's own: a module, a stack of blocks, or any pytree.

    All floating-point arrays of the model are trained; whatever else it holds stays as
    it is. A forward pass that changes the model, such as batch normalization in
    training, is not supported.

    Args:
        key: a JAX random key; it decides the run, with the model and the data.
        model: a Flax NNX or Equinox module, a ``ProcessStack``, a stack of
            ``stack_blocks``, or any other pytree of arrays. It is not changed.
        data: a ``GaussianMixture``, from which samples and labels are drawn; or an
            array ``[n, ...]`` or a tuple of such arrays, samples and labels for
            example, from which batches are drawn with replacement.
        config: the optimization; ``label_dropout`` is used by the default loss, where
            there are labels.
        loss: ``loss(model, key, *batch) -> scalar``, with the arrays of a batch; by
            default ``denoising_loss`` with the scale of the data. Options of that are
            given by ``functools.partial(gg.denoising_loss, weight="epsilon")``.
        progress: ``True`` for a progress bar, a callable that is told
            ``TrainingProgress`` every few steps, ``False`` for silence; by default a
            bar on terminals and in notebooks.
        checkpoint: folder to resume from, as in ``train_denoiser``.
        mesh: devices over which each batch is divided.

    Returns:
        A ``Fit``: ``.network`` is the model with averaged weights.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the current steps are done.
        ValueError: for a model without floating-point arrays, data without samples, of
            unequal lengths or not finite, or a checkpoint of another run.
        TypeError: for the default loss of a model that is not callable.
    """
    check_key(key)
    if loss is None:
        check_denoiser(model)
    mesh = None if mesh is None else as_mesh(mesh)
    batch_mesh, place = on_mesh(mesh, 1, config.batch_size)
    arrays, static = split(model)
    trained = [a if _is_float(a) else None for a in arrays]
    fixed = [None if _is_float(a) else a for a in arrays]
    if not jax.tree.leaves(trained):
        raise ValueError(
            f"the model must hold floating-point arrays to train, but "
            f"{type(model).__name__} has none that are visible. A function hides the "
            f"arrays that it closes over: pass the module itself, or "
            f"jax.tree_util.Partial(function, arrays)."
        )
    if static.hidden_arrays:
        warnings.warn(
            f"the model holds functions that close over {static.hidden_arrays} arrays, "
            f"which are not trained; make them methods of a module or "
            f"jax.tree_util.Partial if they should be.",
            stacklevel=2,
        )
    if not isinstance(data, GaussianMixture):
        data = _as_arrays(data)
    if loss is None:
        loss = _default_loss(data, config)
    run = fit(
        _OwnLoss(static, loss, config.batch_size, batch_mesh),
        key,
        (fixed, data),
        config,
        network=trained,
        description={
            "kind": "gmm_guidance.train checkpoint",
            "data": digest(data),
            "model": digest(arrays),
        },
        progress=progress,
        checkpoint=checkpoint,
        place=place,
    )
    models = tuple(_joined(network, fixed, static) for network in run.networks)
    return run._replace(networks=models)


@dataclasses.dataclass(frozen=True)
class _OwnLoss:
    """The objective: a loss of a batch. Networks are lists of the trained arrays."""

    static: Static
    own: Loss
    batch_size: int
    batch_mesh: Mesh | None

    def init(self, key: jax.Array) -> Any:
        raise NotImplementedError("the model is given.")

    def loss(self, network: Any, key: jax.Array, data: Any) -> jax.Array:
        fixed, source = data
        pick_key, loss_key = jax.random.split(key)
        if isinstance(source, GaussianMixture):
            batch: Any = sample_batch(source.parameters, pick_key, self.batch_size)
        else:
            count = source[0].shape[0]
            chosen = jax.random.randint(pick_key, (self.batch_size,), 0, count)
            batch = tuple(a[chosen] for a in source)
        if self.batch_mesh is not None:
            batch = tuple(shard_batch(a, self.batch_mesh) for a in batch)
        value = self.own(_joined(network, fixed, self.static), loss_key, *batch)
        if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"the loss must return one floating-point number, got "
                f"{getattr(value, 'dtype', type(value).__name__)} of shape "
                f"{jnp.shape(value)}; take the mean over the batch."
            )
        return value


def _default_loss(data: Any, config: FitConfig) -> Loss:
    if isinstance(data, GaussianMixture):
        scale, labeled = float(data.scale), True
    else:
        samples = np.asarray(data[0], np.float64)
        scale, labeled = float(np.sqrt(samples.var(0).mean())), len(data) > 1
        if labeled:
            as_labels(data[1], samples.shape[:1], None, name="labels")
        if not scale > 0:
            raise ValueError("samples must differ, but all are the same.")
    dropout = config.label_dropout if labeled else 0.0
    return functools.partial(denoising_loss, data_scale=scale, label_dropout=dropout)


def _as_arrays(data: Any) -> tuple[jax.Array, ...]:
    arrays = tuple(map(jnp.asarray, data if isinstance(data, tuple) else (data,)))
    lengths = [a.shape[0] if a.ndim else 0 for a in arrays]
    if not arrays or 0 in lengths or len(set(lengths)) > 1:
        raise ValueError(
            f"data must be a mixture, or arrays [n, ...], n at least 1; samples and "
            f"labels must be equally many, got shapes {[a.shape for a in arrays]}."
        )
    if not _is_float(arrays[0]):
        raise ValueError(
            f"samples must be floating-point numbers, got {arrays[0].dtype}; scale "
            f"pixels to -1..1 by x / 127.5 - 1."
        )
    check_finite(np.asarray(arrays[0]), "samples", "Leave them out or mend them.")
    return arrays


def _is_float(array: Any) -> bool:
    return array is not None and jnp.issubdtype(array.dtype, jnp.floating)


def _joined(trained: Any, fixed: list[Any], static: Static) -> Any:
    arrays = [b if a is None else a for a, b in zip(trained, fixed, strict=True)]
    return join(arrays, static)
