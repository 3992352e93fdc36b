"""``full-models calibrate``: which guidance corrections data justify, for a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from full_models.commands.drawing import machine
from full_models.commands.options import ModelOptions
from full_models.commands.sample import model_line
from full_models.fingerprint import fingerprint
from full_models.run_folder import RunFolder
from gmm_guidance.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Measure, on real data, how well CFG and each dropped block point at the error."""

    model: ModelOptions
    data: Path
    """.npz with "samples" [n, H, W, C] (latents scaled as the model has them) and
    "labels" [n]; preferably data that the model was not trained on."""
    out: Path
    """Output directory; absent or empty."""
    blocks: tuple[int, ...] | None = None
    """Blocks to measure; all but the first by default."""
    num_samples: int = 5000
    """Noised samples at each level."""
    num_levels: int = 12
    """Noise levels, from 0.01 to 20 data standard deviations."""
    batch_size: int = 64
    """Samples at once."""
    seed: int = 0
    """Of the noise."""


def calibrate(config: Calibrate, reporter: Reporter) -> list[Path]:
    """Run the command; returns the files.

    Raises:
        ValueError: for data or blocks that do not fit the model.
        OSError: if the output cannot be written, or the directory is occupied.
    """
    samples, labels = _read_data(config.data)
    description = _describe(config)
    with RunFolder(config.out, description) as folder:
        network = config.model.load()
        reporter.say(model_line(network))
        if samples.shape[1:] != network.sample_shape:
            raise ValueError(
                f"{config.data} holds samples of shape {samples.shape[1:]}, but the "
                f"model's are {network.sample_shape}."
            )
        features: Any = None
        if config.blocks is not None:
            features = ("cfg", *((b,) for b in config.blocks))
        levels = float(np.std(samples)) * np.geomspace(0.01, 20.0, config.num_levels)
        with reporter.task("calibration", 24) as task:
            found = gg.calibrate(
                network,
                (samples, labels),
                jax.random.key(config.seed),
                features=features,
                sigmas=levels,
                num_samples=config.num_samples,
                batch_size=config.batch_size,
                progress=lambda done, total: task.move_to(done),
            )
        found.save(folder.path / "calibration.json")
        figure = calibration_figure(found)
        figure.savefig(folder.path / "calibration.png", dpi=200)
        plt.close(figure)
        ranking: list[dict[str, Any]] = [
            {"feature": gg.feature_name(f), "removed": gain, "standard_error": error}
            for f, gain, error in found.ranking()
        ]
        for entry in ranking[:5]:
            reporter.say(
                f"  {entry['feature']}: removes {100 * entry['removed']:.2f} % "
                f"+- {100 * entry['standard_error']:.2f} of the squared error"
            )
        return folder.finish({"ranking": ranking, "machine": machine()})


def calibration_figure(found: gg.Calibration) -> Figure:
    """Coefficients of CFG and a random dropped block, and what each feature removes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.8), layout="constrained")
    fit = found.fit_random_block() if len(found.features) > 1 else found.fit()
    names = ("scale − 1 of CFG", "ω of S² (a random block)")
    for column, name in zip(fit.coefficients.T, names, strict=False):
        left.plot(found.sigmas, column, marker="o", markersize=3, label=name)
    left.axhline(0.0, color="0.6", linewidth=0.8)
    left.set(xscale="log", xlabel="noise level σ", ylabel="coefficient")
    left.legend(fontsize=7, frameon=False)
    ranking = found.ranking()[:12]
    places = np.arange(len(ranking))
    right.barh(
        places,
        [100 * gain for _, gain, _ in ranking],
        xerr=[100 * error for _, _, error in ranking],
        color="0.6",
    )
    right.set_yticks(places, [gg.feature_name(f) for f, _, _ in ranking], fontsize=7)
    right.invert_yaxis()
    right.set_xlabel("squared error removed alone, %")
    return figure


def _describe(config: Calibrate) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    fields.pop("out")
    fields.pop("batch_size")
    return {
        "command": "calibrate",
        **fields,
        "model": config.model.describe(),
        "data": str(config.data),
        "data_sha256": fingerprint(config.data),
    }


def _read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no .npz file ({error}).") from error
    if "samples" not in arrays or "labels" not in arrays:
        raise ValueError(
            f'{path} must hold arrays "samples" and "labels", found '
            f"{', '.join(sorted(arrays)) or 'none'}."
        )
    return arrays["samples"], arrays["labels"].astype(np.int32)
