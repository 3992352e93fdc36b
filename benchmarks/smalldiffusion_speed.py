"""Training and guided sampling against smalldiffusion 0.5.0, a PyTorch toy laboratory.

Install it without what image data sets would need::

    pip install --no-deps smalldiffusion accelerate einops tqdm

Both train a class-conditional network with label dropout on samples of the same
mixture, at the same batch, and sample it under CFG with as many evaluations. Networks
are matched in parameters: its plain MLP of 25 hidden layers has 24 square matrices, our
8 residual blocks have 3 each; its default network stands beside 5 of our blocks. What
differs stays on our side: fresh samples in every step (its data set is fixed), clipping
of gradients, an average of weights, normalized blocks. Its training loop is run as
shipped, with a ``DataLoader``, and fed with batches made beforehand. PyTorch runs with
one thread or with one for each core, whichever is faster for the case: where other
programs share the cores, its threads wait for one another.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

import gmm_guidance as gg
from benchmarks.harness import paired, seconds

_STEPS = 10
_EVALUATIONS = 20
_SCALE = 4.0
_DATA_SET = 4096
# Name, hidden layers of theirs, blocks of ours, batch of training.
_CASES = (
    ("width 64, 24 matrices, batch 256", (64,) * 25, 8, 256),
    ("width 64, 24 matrices, batch 2048", (64,) * 25, 8, 2048),
    ("its default network, batch 2048", (16, 128, 256, 128, 16), 5, 2048),
)
_SEEDS = 5


def smalldiffusion_speed() -> dict[str, Any]:
    """Ratios of training steps and of guided samples per second."""
    if importlib.util.find_spec("smalldiffusion") is None:
        print("smalldiffusion is not installed; see benchmarks/smalldiffusion_speed.py")
        return {}
    theirs = _import()
    mixture = gg.presets.tree(classes=4, depth=3)
    points, labels = mixture.sample(jax.random.key(1), _DATA_SET)
    data = torch.tensor(np.asarray(points)), torch.tensor(np.asarray(labels)).long()
    results: dict[str, Any] = {}
    for name, hidden, blocks, batch in _CASES:
        network = theirs.ConditionalMLP(
            hidden_dims=hidden, num_classes=mixture.num_labels
        )
        config = gg.TrainingConfig(
            snapshots=(_STEPS,), batch_size=batch, width=64, num_blocks=blocks
        )
        run = gg.train_denoisers(jax.random.key(0)[None], mixture, config)
        entry: dict[str, Any] = {
            "our_parameters": sum(a[0].size for a in jax.tree.leaves(run.networks[0])),
            "their_parameters": sum(p.numel() for p in network.parameters()),
        }
        entry |= _training(theirs, network, data, mixture, config, batch)
        if batch == 2048:
            entry |= _sampling(theirs, network, run.denoiser())
        results[f"beside smalldiffusion: {name}"] = entry
    return results


def _import() -> Any:
    """The package. Its image data sets, unused here, import torchvision.

    There is no CPU build of torchvision for every PyTorch, so that an empty module
    stands in for it; the package calls three of its names at import.
    """
    if importlib.util.find_spec("torchvision") is None:
        transforms = types.ModuleType("torchvision.transforms")
        for name in ("Compose", "RandomHorizontalFlip", "ToTensor", "Lambda"):
            setattr(transforms, name, lambda *arguments: None)
        stub = types.ModuleType("torchvision")
        stub.transforms = transforms  # type: ignore[attr-defined]
        sys.modules["torchvision"] = stub
        sys.modules["torchvision.transforms"] = transforms
    import smalldiffusion
    import smalldiffusion.diffusion

    # Its loop draws a progress bar on the terminal.
    smalldiffusion.diffusion.tqdm = lambda steps: steps
    return smalldiffusion


def _training(theirs, network, data, mixture, config, batch) -> dict[str, Any]:
    schedule = theirs.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
    shipped = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
    )
    ready = [tuple(a[i : i + batch] for a in data) for i in range(0, _DATA_SET, batch)]

    def train(loader) -> Callable[[], None]:
        def run() -> None:
            loop = theirs.training_loop(
                loader, network, schedule, epochs=_STEPS, conditional=True
            )
            # The loop pauses within a step: this many are finished when it resumes.
            for done, _ in enumerate(loop):
                if done == _STEPS:
                    return

        return run

    def ours(seeds: int) -> Callable[[], Any]:
        keys = jax.random.split(jax.random.key(0), seeds)
        return lambda: gg.train_denoisers(keys, mixture, config).losses

    entry: dict[str, Any] = {"their_threads": _faster_threads(train(ready))}
    for name, loader in (("as_shipped", shipped), ("ready_batches", ready)):
        times = paired(ours(1), train(loader), repeats=5)
        entry["our_steps_per_second"] = _STEPS / times["ours_seconds"]
        entry[f"their_steps_per_second_{name}"] = _STEPS / times["theirs_seconds"]
        entry[f"training_ratio_{name}"] = times["ratio"]
        entry[f"training_ratio_{name}_range"] = times["ratio_range"]
    # Several training seeds: ours at once, theirs one after another.
    times = paired(ours(_SEEDS), train(ready), repeats=3)
    entry[f"training_ratio_{_SEEDS}_seeds"] = _SEEDS * times["ratio"]
    return entry


def _faster_threads(program: Callable[[], Any]) -> int:
    """Sets PyTorch's number of threads to 1 or to that of the cores."""
    times = {}
    for count in (1, os.cpu_count() or 1):
        torch.set_num_threads(count)
        seconds(program)
        times[count] = min(seconds(program), seconds(program))
    best = min(times, key=lambda count: times[count])
    torch.set_num_threads(best)
    return best


def _sampling(theirs, network, denoiser, count: int = 4096) -> dict[str, Any]:
    schedule = theirs.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
    sigmas = schedule.sample_sigmas(_EVALUATIONS)
    condition = torch.arange(count) % 4
    labels = np.arange(count) % 4

    def their_samples() -> torch.Tensor:
        # Its scale counts from 0.
        *_, last = theirs.samples(
            network, sigmas, cfg_scale=_SCALE - 1.0, batchsize=count, cond=condition
        )
        return last

    def our_samples() -> jax.Array:
        return gg.guided_sample(
            jax.random.key(0),
            denoiser,
            labels,
            num_samples=count,
            guidance=gg.CFG(_SCALE),
            schedule=gg.Karras(_EVALUATIONS, 0.005, 10.0),
            solver="euler",
        )

    times = paired(our_samples, their_samples)
    return {
        "our_cfg_samples_per_second": count / times["ours_seconds"],
        "their_cfg_samples_per_second": count / times["theirs_seconds"],
        "sampling_ratio": times["ratio"],
        "sampling_ratio_range": times["ratio_range"],
    }
