"""``MeshSampler``: batches of a large model on all devices, latents and images."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import gmm_guidance as gg
from full_models.models.autoencoder import KLDecoder
from gmm_guidance.sharding import (
    BATCH_AXES,
    batch_parts,
    batch_sharding,
    local_part,
    num_batch_parts,
    replicate,
)

_DECODED_AT_ONCE = 4


class Batch(NamedTuple):
    """Samples that this process drew.

    Attributes:
        samples: as the model has them, float32 ``[n, H, W, C]``.
        images: bytes ``[n, H', W', 3 or 1]``; ``None`` for latents without a VAE.
    """

    samples: np.ndarray
    images: np.ndarray | None


class MeshSampler:
    """Draws samples by their global index; one program serves all batches.

    A sample depends on the key, its index and its label. Its bits depend besides on the
    ``batch_size`` samples that its device computes together, not on the number of
    devices, as long as each has all parameters.

    Args:
        model: a ``DiT`` (or ``WithVariance``), placed on the mesh.
        mesh: the devices.
        key: a JAX random key.
        guidance: the rule.
        schedule: noise levels.
        solver: as in ``guided_sample``.
        batch_size: samples at once on each device, at least 1.
        decoder: of the VAE, if images are wanted of latents.

    Raises:
        ValueError: for a batch size below 1.
    """

    def __init__(
        self,
        model: Any,
        mesh: Mesh,
        *,
        key: jax.Array,
        guidance: gg.GuidanceRule,
        schedule: Any,
        solver: Any,
        batch_size: int,
        decoder: KLDecoder | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.mesh = mesh
        self.batch_size = batch_size
        self._decoder = None if decoder is None else replicate(decoder, mesh)
        self._sample = functools.partial(
            gg.guided_sample,
            replicate(key, mesh),
            model,
            guidance=guidance,
            schedule=schedule,
            solver=solver,
            num_samples=batch_size * num_batch_parts(mesh),
            mesh=mesh,
        )

    @property
    def samples_at_once(self) -> int:
        """Samples that this process draws in a batch."""
        return self.batch_size * len(batch_parts(self.mesh))

    def draw(self, indices: np.ndarray, labels: np.ndarray) -> Batch:
        """Draw up to ``samples_at_once`` samples.

        Each process of several brings its own, and all must call together.

        Args:
            indices: ``[n]`` global indices; none draws nothing, for a process that only
                takes part.
            labels: ``[n]``.
        """
        count = len(indices)
        samples = self._sample(
            self._on_mesh(labels, np.int32), indices=self._on_mesh(indices, np.uint32)
        )
        images = self._images(samples)
        return Batch(
            local_part(samples)[:count],
            None if images is None else local_part(images)[:count],
        )

    def _on_mesh(self, values: np.ndarray, dtype: Any) -> jax.Array:
        """Local values, filled up by the last, as a part of the whole batch."""
        local = np.zeros(self.samples_at_once, dtype)
        local[: len(values)] = values
        local[len(values) :] = values[-1] if len(values) else 0
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh), local)

    def _images(self, samples: jax.Array) -> jax.Array | None:
        if self._decoder is not None:
            return _decode(self.mesh, self._decoder, samples)
        return _to_bytes(samples) if samples.shape[-1] in (1, 3) else None


@functools.partial(jax.jit, static_argnums=0)
def _decode(mesh: Mesh, decoder: KLDecoder, samples: jax.Array) -> jax.Array:
    """Bytes of latents, each device's own, a few at once."""

    def on_one_device(decoder: KLDecoder, samples: jax.Array) -> jax.Array:
        images = jax.lax.map(
            lambda latent: decoder.decode(latent[None])[0],
            samples,
            batch_size=min(_DECODED_AT_ONCE, samples.shape[0]),
        )
        return _to_bytes(images)

    batch = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), batch),
        out_specs=batch,
        check_vma=False,
    )(decoder, samples)


@jax.jit
def _to_bytes(images: jax.Array) -> jax.Array:
    """As ``images.to_uint8``."""
    scaled = (images.astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)
