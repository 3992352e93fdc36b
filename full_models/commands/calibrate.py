"""``full-models calibrate``: which guidance corrections data justify, for a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import gmm_guidance as gg
from full_models.commands.options import ModelOptions
from full_models.generation.run_folder import RunFolder, machine
from gmm_guidance._runtime.checks import key_of_seed
from gmm_guidance._runtime.figure_style import (
    COLORS,
    PAGE_WIDTH,
    TRUTH,
    figure_style,
)
from gmm_guidance._runtime.files import sha256
from gmm_guidance._runtime.npz import headers, read_array
from gmm_guidance._runtime.progress import Reporter
from gmm_guidance.analysis.weak_pass_profile import WeakPassProfile
from gmm_guidance.guidance.calibrated import feature_name

_MOST_BARS = 12
_MARKERS: dict[str, Any] = {"marker": "o", "markersize": 3, "elinewidth": 0.8}
_PROFILE_TITLES = {
    "output": "fraction of the output taken away",
    "cfg": "CFG scale added by a unit of ω",
    "best_weight": "ω of least error on CFG of scale {scale:g}",
}
_PRINTED_LEVELS = 6


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Measure, on real data, how well CFG and each dropped block point at the error."""

    model: ModelOptions
    data: Path
    """File (.npz) with "samples" [n, H, W, C], scaled as the model has them, and
    "labels" [n]; preferably data that the model was not trained on."""
    out: Path
    """Output directory; absent or empty."""
    blocks: tuple[int, ...] | None = None
    """Blocks to measure; all but the first by default."""
    num_samples: int = 5000
    """Number of noised samples at each level."""
    num_levels: int = 12
    """Number of noise levels, from 0.01 to 20 data standard deviations."""
    batch_size: int = 64
    """Number of samples computed at once."""
    cfg_scale: float = 2.0
    """Total CFG scale to which S² would be added, for the profile of its correction."""
    seed: int = 0
    """Random seed of the noise."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Calibrate; returns the files."""
        samples, labels = _read_data(self.data)
        checkpoint = self.model.open()
        description = {
            "command": "calibrate",
            "model": self.model.describe(checkpoint),
            "data": {"name": self.data.name, "sha256": sha256(self.data)},
            **{n: getattr(self, n) for n in ("blocks", "num_samples", "num_levels")},
            "cfg_scale": self.cfg_scale,
            "seed": self.seed,
        }
        with RunFolder(self.out, description) as folder:
            wanted = checkpoint.pipeline.sample_shape
            if samples.shape[1:] != wanted:
                raise ValueError(
                    f"{self.data} holds samples of shape {samples.shape[1:]}, but the "
                    f"model's are {wanted}."
                )
            model = checkpoint.load(self.model.resolved_precision())
            reporter.say(checkpoint.title)
            features: Any = None
            if self.blocks is not None:
                features = ("cfg", *((b,) for b in self.blocks))
            levels = float(np.std(samples)) * np.geomspace(0.01, 20.0, self.num_levels)
            with reporter.task("calibration", 24) as task:
                found = gg.calibrate(
                    model,
                    (samples, labels),
                    key_of_seed(self.seed),
                    features=features,
                    sigmas=levels,
                    num_samples=self.num_samples,
                    batch_size=self.batch_size,
                    progress=lambda done, total: task.move_to(done),
                )
            found.save(folder.path / "calibration.json")
            ranking = ranked_shares(found)
            with figure_style():
                figure = calibration_figure(found, ranking)
                figure.savefig(folder.path / "calibration.png")
            for entry in ranking[:5]:
                reporter.say(
                    f"  {entry['feature']}: removes {100 * entry['fraction']:.3g} % "
                    f"± {100 * entry['fraction_standard_error']:.2g} % of the squared "
                    f"error"
                )
            profile = None
            if any(not isinstance(feature, str) for feature in found.features):
                profile = found.profile()
                with figure_style():
                    figure = profile_figure(profile, self.cfg_scale)
                    figure.savefig(folder.path / "profile.png")
                for line in profile_lines(profile, self.cfg_scale):
                    reporter.say(line)
            folder.record(
                {
                    "profile": profile and profile.records(self.cfg_scale),
                    "squared_error": found.total_error(),
                    "ranking": ranking,
                    "machine": machine(),
                }
            )
        return folder.files()


def ranked_shares(found: gg.Calibration) -> list[dict[str, Any]]:
    """What each feature alone removes of the squared error, the best first.

    Returns:
        For each feature ``removed`` and its ``standard_error``, per element of a sample
        and weighted over levels, and the same divided by the weighted squared error of
        the plain conditional prediction: ``fraction`` and ``fraction_standard_error``.
    """
    total = found.total_error()  # its own error is small against those of the gains
    return [
        {
            "feature": feature_name(feature),
            "removed": gain,
            "standard_error": error,
            "fraction": gain / total,
            "fraction_standard_error": error / total,
        }
        for feature, gain, error in found.ranking()
    ]


def calibration_figure(found: gg.Calibration, ranking: list[dict[str, Any]]) -> Figure:
    """Coefficients of CFG and a random dropped block, and what each feature removes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.6))
    fit = found.fit_random_block() if len(found.features) > 1 else found.fit()
    names = {"cfg": "scale − 1 of CFG", "s2": "ω of S² (a random block)"}
    # With 95 % intervals, at the levels that have coefficients at all.
    bars = np.where(fit.active[:, None], fit.half_width, 0.0)
    for (key, name), column, bar in zip(
        names.items(), fit.coefficients.T, bars.T, strict=False
    ):
        left.errorbar(
            found.sigmas, column, bar, color=COLORS[key], label=name, **_MARKERS
        )
    left.axhline(0.0, color=TRUTH, linewidth=0.8)
    left.set(xscale="log", xlabel="noise level σ", ylabel="coefficient")
    left.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(0.0, fit.coefficients.min()), max(0.0, fit.coefficients.max())
    if low < high:  # the range of the coefficients: a wide interval ends at the frame
        left.set_ylim(1.4 * low - 0.4 * high, 1.4 * high - 0.4 * low)
    left.legend()
    shown = ranking[:_MOST_BARS]
    cfg = feature_name("cfg")
    right.barh(
        [entry["feature"] for entry in shown],
        [100 * entry["fraction"] for entry in shown],
        xerr=[100 * entry["fraction_standard_error"] for entry in shown],
        color=[COLORS["cfg" if e["feature"] == cfg else "s2"] for e in shown],
        error_kw={"elinewidth": 0.8},
    )
    right.invert_yaxis()
    right.axvline(0.0, color=TRUTH, linewidth=0.8)
    right.set_xlabel("squared error that each alone removes, % of the whole")
    return figure


def _projections(
    profile: WeakPassProfile, scale: float
) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Title, values and half widths of 95 % intervals, ``[S, K]``, by direction."""
    found = {
        name: profile.fraction(name)
        for name in profile.directions
        if name != "learning_error"
    } | {"best_weight": profile.best_weight(scale)}
    width = scipy.stats.t.ppf(0.975, profile.products.shape[1] - 1)
    return {
        name: (
            _PROFILE_TITLES[name].format(scale=scale),
            projection.value,
            width * projection.standard_error,
        )
        for name, projection in found.items()
    }


def profile_lines(profile: WeakPassProfile, scale: float) -> list[str]:
    """The projections of the last correction (the mean of blocks) at some levels."""
    levels = np.unique(
        np.linspace(0, len(profile.sigmas) - 1, _PRINTED_LEVELS).round().astype(int)
    )
    header = "  ".join(f"{profile.sigmas[k]:>13.3g}" for k in levels)
    lines = [
        f"  correction of {profile.corrections[-1]}, 95 % intervals",
        "  σ" + header,
    ]
    for title, value, bar in _projections(profile, scale).values():
        cells = (f"{value[k, -1]:+.3f} ± {bar[k, -1]:.3f}" for k in levels)
        lines += [f"  {title}:", "   " + "  ".join(f"{c:>13}" for c in cells)]
    return lines


def profile_figure(profile: WeakPassProfile, scale: float) -> Figure:
    """Where the correction of each dropped block points, by noise level.

    The mean of blocks, or a single correction, has 95 % intervals.
    """
    panels = _projections(profile, scale)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(PAGE_WIDTH, 2.6), squeeze=False, sharex=True
    )
    for ax, (title, value, bar) in zip(axes[0], panels.values(), strict=True):
        for k, name in enumerate(profile.corrections[:-1]):
            label = "single blocks" if k == 0 else None
            ax.plot(profile.sigmas, value[:, k], color=TRUTH, lw=0.5, label=label)
            ax.annotate(
                name.removeprefix("block "), (profile.sigmas[-1], value[-1, k]),
                fontsize=5, color=TRUTH,
            )  # fmt: skip
        ax.errorbar(
            profile.sigmas, value[:, -1], bar[:, -1], color=COLORS["s2"],
            label=profile.corrections[-1], **_MARKERS,
        )  # fmt: skip
        ax.axhline(0.0, color=TRUTH, linewidth=0.8)
        # CFG's direction vanishes at low noise: levels that say nothing set no range.
        known = value[bar[:, -1] <= 4.0 * np.median(bar[:, -1]) + 1e-6]
        low, high = min(0.0, known.min()), max(0.0, known.max())
        if low < high:
            ax.set_ylim(1.4 * low - 0.4 * high, 1.4 * high - 0.4 * low)
        ax.set(xscale="log", xlabel="noise level σ")
        ax.set_title(title, fontsize=7)
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].legend()
    return figure


def _read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = headers(path)
    if "samples" not in found or "labels" not in found:
        raise ValueError(
            f'{path} must hold arrays "samples" and "labels", found '
            f"{', '.join(sorted(found)) or 'none'}."
        )
    return read_array(path, "samples"), read_array(path, "labels").astype(np.int32)
