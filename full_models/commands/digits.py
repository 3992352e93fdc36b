"""``full-models train-digits`` and ``evaluate-digits``: a real model on a laptop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gmm_guidance as gg
from full_models.digits.evaluate import DigitsEvaluation, evaluate_digits
from full_models.digits.train import DigitsTraining, train_digits
from gmm_guidance._runtime.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class TrainDigits:
    """Train a small DiT on real handwritten digits; goes on where it was stopped."""

    out: Path
    """Output directory."""
    training: DigitsTraining = DigitsTraining()
    mesh: str = "data=1"
    """Devices that divide each batch (data) and the parameters (fsdp, tensor)."""
    quick: bool = False
    """A narrow network for a few seconds, to see that all works; other options but
    the seed are ignored."""


@dataclasses.dataclass(frozen=True)
class EvaluateDigits:
    """Compare guidance rules on trained digits networks: table, figures, samples."""

    out: Path
    """Output directory; an interrupted evaluation goes on there."""
    evaluation: DigitsEvaluation = DigitsEvaluation()
    quick: bool = False
    """The last network of the first run and few settings; other options are ignored."""


def run_training(command: TrainDigits, reporter: Reporter) -> list[Path]:
    """Run ``train-digits``; returns the files. Raises as ``train_digits``."""
    config = command.training
    if command.quick:
        config = dataclasses.replace(DigitsTraining.quick(), seed=config.seed)
    mesh = gg.MeshConfig.parse(command.mesh).build()
    # On one device nothing is divided: the program without a mesh.
    return train_digits(config, command.out, reporter, mesh if mesh.size > 1 else None)


def run_evaluation(command: EvaluateDigits, reporter: Reporter) -> list[Path]:
    """Run ``evaluate-digits``; returns the files. Raises as ``evaluate_digits``."""
    config = command.evaluation
    if command.quick:
        config = DigitsEvaluation.quick(config.runs)
    return evaluate_digits(config, command.out, reporter)
