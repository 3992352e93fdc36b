"""The part that ``sample`` and ``compare`` share: draw, decode, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import gmm_guidance as gg
from full_models.commands.options import DrawOptions, num_rows
from full_models.generation.sampler import Batch, MeshSampler
from full_models.memory import check_memory
from full_models.models.autoencoder import KLDecoder, load_autoencoder
from full_models.models.dit.network import DiT
from gmm_guidance._runtime.reporter import Reporter


class Drawn(NamedTuple):
    """Samples of one rule.

    Attributes:
        samples: latents or pixels as the model has them, float32 ``[n, H, W, C]``.
        images: bytes ``[n, H', W', 3 or 1]``, or ``None`` for latents without a VAE.
        seconds: wall time of sampling, compilation included.
        images_per_second: after the first batch; of all if there is one batch only.
        passes_per_image: expected forward passes of the network.
    """

    samples: np.ndarray
    images: np.ndarray | None
    seconds: float
    images_per_second: float
    passes_per_image: float


def load_decoder(path: Path | None, network: DiT) -> KLDecoder | None:
    """The VAE's decoder, if one is named.

    Raises:
        ValueError: if it is for latents of another number of channels.
    """
    if path is None:
        return None
    decoder = load_autoencoder(path)
    channels = decoder.config.latent_channels
    if channels != network.config.in_channels:
        raise ValueError(
            f"the VAE decodes latents of {channels} channels, but the model draws "
            f"{network.config.in_channels}; check --vae."
        )
    return decoder


def draw(
    name: str,
    network: DiT,
    decoder: KLDecoder | None,
    rule: gg.GuidanceRule,
    options: DrawOptions,
    mesh: Mesh,
    reporter: Reporter,
) -> Drawn:
    """Draw the images of one rule on the devices of this process, with progress.

    Raises:
        MemoryError: if the batch does not fit, naming one that does.
    """
    # Not by the number of devices: what one computes together decides the last bits.
    size = min(options.batch_size, options.num)
    # The weights are placed already, and count as used.
    check_memory(network.config, num_rows(rule, network), size, 0)
    schedule, solver = options.schedule(network), options.solver_for(network)
    sampler = MeshSampler(
        options.drawn_model(network),
        mesh,
        key=jax.random.key(options.seed),
        guidance=rule,
        schedule=schedule,
        solver=solver,
        batch_size=size,
        decoder=decoder,
    )
    labels = options.chosen_labels(network)
    times: list[tuple[int, float]] = []
    batches: list[Batch] = []
    begun = time.monotonic()
    with reporter.task(name, options.num) as task:
        task.detail("compiling")
        for start in range(0, options.num, sampler.samples_at_once):
            stop = min(start + sampler.samples_at_once, options.num)
            started = time.monotonic()
            batches.append(sampler.draw(np.arange(start, stop), labels[start:stop]))
            times.append((stop, time.monotonic() - started))
            task.move_to(stop, f"{_speed(times):.3g} images/s")
    seconds = time.monotonic() - begun
    cost = gg.expected_cost(rule, schedule, network.num_blocks, solver=solver)
    images = [b.images for b in batches if b.images is not None]
    return Drawn(
        np.concatenate([b.samples for b in batches]),
        np.concatenate(images) if images else None,
        seconds,
        _speed(times),
        cost.shared,
    )


def _speed(times: list[tuple[int, float]]) -> float:
    """Images per second; the first batch, which compiles, counts if it is the only."""
    (first, seconds), (last, _) = times[0], times[-1]
    if len(times) == 1:
        return first / max(seconds, 1e-9)
    return (last - first) / max(sum(s for _, s in times[1:]), 1e-9)


def machine() -> dict[str, Any]:
    """What results depend on besides the options."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "gmm_guidance": gg.__version__,
    }
