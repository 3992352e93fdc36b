"""What an experiment is: a configuration, a computation and a drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.laboratory import Guidance, Networks
from toy_experiments.common.workspace import Arrays, Workspace

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """What all experiments share.

    Attributes:
        seeds: training seeds, at least 2 (standard errors are over them).
        num_samples: samples of each rule and seed.
        num_steps: steps of the sampler (Heun).
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        std: standard deviation of each mode; the modes lie at -4 and 4.
        networks: how the denoisers are trained.
        guidance: scales and masks of the rules.
    """

    seeds: int = 5
    num_samples: int = 4096
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    std: float = 1.0
    networks: Networks = Networks()
    guidance: Guidance = Guidance()

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since standard errors are over seeds, got "
                f"{self.seeds}."
            )
        if self.num_samples < 64:
            raise ValueError(
                f"num_samples must be at least 64, got {self.num_samples}."
            )
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}.")
        self.schedule()

    @classmethod
    def quick(cls) -> Config:
        """A smaller run of the same experiment."""
        return cls(
            seeds=2,
            num_samples=1024,
            num_steps=16,
            networks=Networks(well_steps=1000, well_weak_steps=200, batch_size=256),
        )

    def schedule(self) -> gg.Karras:
        """The noise levels."""
        return gg.Karras(self.num_steps, self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One entry of the command line.

    Attributes:
        name: as typed.
        summary: one line.
        config: its configuration class.
        compute: configuration and workspace to numbers and plotted arrays.
        draw: numbers and arrays to figures by file name; needs nothing else.
        summarise: numbers to the lines printed at the end.
    """

    name: str
    summary: str
    config: Any
    compute: Callable[[Any, Workspace], tuple[Metrics, Arrays]]
    draw: Callable[[Metrics, Arrays], dict[str, Figure]]
    summarise: Callable[[Metrics], list[str]]


def over_seeds(values: list[dict[str, float]]) -> Metrics:
    """Mean, standard error and 95 % interval of each metric over seeds."""
    result: Metrics = {}
    for name in values[0]:
        numbers = np.array([v[name] for v in values], float)
        mean, error = gg.metrics.mean_and_standard_error(numbers)
        low, high = gg.metrics.confidence_interval(numbers)
        result[name] = {
            "mean": float(mean),
            "standard_error": float(error),
            "interval_95": [float(low), float(high)],
            "seeds": numbers.tolist(),
        }
    return result


def plus_minus(entry: Metrics, digits: int = 3) -> str:
    """``mean ± standard error`` of one metric."""
    return f"{entry['mean']:.{digits}f} ± {entry['standard_error']:.{digits}f}"
