"""The part that ``sample`` and ``compare`` share: draw, decode, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import gmm_guidance as gg
from full_models.batches import draw_in_batches
from full_models.commands.options import DrawOptions, num_rows
from full_models.dit import DiT, WithVariance
from full_models.images import to_uint8
from full_models.memory import check_memory
from full_models.vae import VAEDecoder, decode_in_chunks, load_vae
from gmm_guidance.reporter import Reporter

_DECODED_AT_ONCE = 4


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


def load_decoder(path: Path | None, network: DiT) -> VAEDecoder | None:
    """The VAE's decoder, if one is named.

    Raises:
        ValueError: if it is for latents of another number of channels.
    """
    if path is None:
        return None
    decoder = load_vae(path)
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
    decoder: VAEDecoder | None,
    rule: gg.GuidanceRule,
    options: DrawOptions,
    reporter: Reporter,
) -> Drawn:
    """Draw the images of one rule, with progress.

    Raises:
        MemoryError: if the batch does not fit, naming one that does.
    """
    size = min(options.batch_size, options.num)
    # The weights are placed already, and count as used.
    check_memory(network.config, num_rows(rule, network), size, 0)
    model = options.drawn_model(network)
    schedule, solver = options.schedule(network), options.solver_for(network)
    times: list[tuple[int, float]] = []
    begun = time.monotonic()
    with reporter.task(name, options.num) as task:
        task.detail("compiling")

        def report(done: int, seconds: float) -> None:
            times.append((done, seconds))
            task.move_to(done, f"{_speed(times):.3g} images/s")

        samples = draw_in_batches(
            model,
            options.chosen_labels(network),
            key=jax.random.key(options.seed),
            guidance=rule,
            schedule=schedule,
            solver=solver,
            batch_size=size,
            report=report,
        )
    seconds = time.monotonic() - begun
    cost = gg.expected_cost(rule, schedule, network.num_blocks, solver=solver)
    images = _decode(name, samples, decoder, reporter)
    return Drawn(samples, images, seconds, _speed(times), cost.shared)


def _decode(
    name: str, samples: np.ndarray, decoder: VAEDecoder | None, reporter: Reporter
) -> np.ndarray | None:
    if decoder is not None:
        with reporter.task(f"{name}: decoding", len(samples)) as task:
            return decode_in_chunks(
                decoder,
                samples,
                _DECODED_AT_ONCE,
                progress=lambda done, total: task.move_to(done),
            )
    return to_uint8(samples) if samples.shape[-1] in (1, 3) else None


def _speed(times: list[tuple[int, float]]) -> float:
    """Images per second; the first batch, which compiles, counts if it is the only."""
    (first, seconds), (last, _) = times[0], times[-1]
    if len(times) == 1:
        return first / max(seconds, 1e-9)
    return (last - first) / max(sum(s for _, s in times[1:]), 1e-9)


def variance_is_learned(options: DrawOptions, network: DiT) -> bool:
    """Whether the model's output holds variance channels in this run."""
    return isinstance(options.drawn_model(network), WithVariance)


def machine() -> dict[str, Any]:
    """What results depend on besides the options."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "gmm_guidance": gg.__version__,
    }
