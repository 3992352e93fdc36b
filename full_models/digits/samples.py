"""Samples under each rule, stored as they are made, to be found when resuming."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import gmm_guidance as gg
from full_models.digits.rules import AUTOGUIDANCE, NAIVE_S2, Setting, build
from full_models.digits.runs import VERSIONS, DigitsRun
from full_models.models.dit.network import DiT
from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.pytree import join, split

SolverName = Literal["dpmpp_2m", "heun"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        solver: ``"dpmpp_2m"`` or ``"heun"``.
        steps: steps of the solver.
        num_masks: weak passes of Naive S².
    """

    solver: SolverName
    steps: int
    num_masks: int


class SampleStore:
    """Samples of every network, rule and key; drawn once, then read.

    Args:
        folder: where they are kept, made if it does not exist.
        sampling: how they are drawn.
        labels: the intended class of each sample, ``[n]``.
    """

    def __init__(self, folder: Path, sampling: Sampling, labels: np.ndarray):
        self.folder = folder
        self.sampling = sampling
        self.labels = labels
        self._digests: dict[tuple[Path, int], str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def is_stored(self, run: DigitsRun, step: int, setting: Setting, key: int) -> bool:
        """Whether samples need not be drawn any more."""
        return self._path(run, step, setting, key).exists()

    def samples(
        self, run: DigitsRun, step: int, setting: Setting, key: int
    ) -> np.ndarray:
        """Images ``[n, 8, 8, 1]``.

        The starting noise depends on key and index alone: sample ``i`` starts alike
        under every rule and with every network.
        """
        path = self._path(run, step, setting, key)
        if path.exists():
            try:
                with np.load(path) as file:
                    return file["samples"]
            except (OSError, ValueError, EOFError, KeyError):
                path.unlink()  # damaged: draw them again
        network = run.network(step)
        weak = run.network(run.steps[0]) if setting.rule == AUTOGUIDANCE else None
        rule = build(setting, network.num_blocks, self.sampling.num_masks, weak)
        images = draw_samples(network, rule, self.sampling, self.labels, key)
        with atomic(path) as temporary:
            np.savez(temporary, allow_pickle=False, samples=images)
        return images

    def _path(self, run: DigitsRun, step: int, setting: Setting, key: int) -> Path:
        sampling = dataclasses.asdict(self.sampling)
        if setting.rule != NAIVE_S2:
            del sampling["num_masks"]
        description = {
            "network": self._digest(run, step),
            "setting": list(setting),
            "sampling": sampling,
            "labels": hashlib.sha256(self.labels.tobytes()).hexdigest(),
            "key": key,
            "versions": VERSIONS,
        }
        if setting.rule == AUTOGUIDANCE:
            description["weak"] = self._digest(run, run.steps[0])
        text = json.dumps(description, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.folder / f"samples-{digest}.npz"

    def _digest(self, run: DigitsRun, step: int) -> str:
        name = (run.path, step)
        if name not in self._digests:
            self._digests[name] = run.digest(step)
        return self._digests[name]


def draw_samples(
    network: DiT,
    rule: gg.GuidanceRule,
    sampling: Sampling,
    labels: np.ndarray,
    key: int,
) -> np.ndarray:
    """Samples of given classes, ``[n, 8, 8, 1]``.

    One program for all networks of a shape and all numbers of a kind of rule: weights
    and scales are traced.
    """
    arrays, static = split((network, rule))
    samples = _draw(static, sampling, arrays, jax.random.key(key), labels)
    images = np.asarray(samples)
    if not np.isfinite(images).all():
        raise ValueError(
            f"sampling with {sampling} gave values that are not finite; take more "
            f"steps or smaller scales."
        )
    return images


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(static, sampling: Sampling, arrays: list[Any], key, labels) -> jax.Array:
    network, rule = join(arrays, static)
    return gg.guided_sample(
        key,
        network,
        labels,
        num_samples=len(labels),
        guidance=rule,
        schedule=gg.FlowSteps(sampling.steps),
        solver=sampling.solver,
    )
