"""Figures of mixtures, denoisers, rules and samples, with Matplotlib.

Every function returns ``(figure, axes)`` (``animate`` returns the animation), takes
``ax`` to draw into axes of one's figure, and draws in the style of the experiments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from gmm_guidance._runtime.figure_style import (
    COLORS,
    COLUMN_WIDTH,
    FIGURE_SETTINGS,
    TRUTH,
)
from gmm_guidance.analysis.weak_pass_effect import WeakPassEffect
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.guidance.rule import GuidanceRule
from gmm_guidance.metrics.comparison import Comparison
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sampling.guided_denoise import guided_denoise

__all__ = [
    "animate",
    "comparison",
    "density",
    "draw_field",
    "field",
    "profile",
    "samples",
    "trajectories",
]

_PALETTE = (COLORS["cfg"], COLORS["s2"], COLORS["autoguidance"], COLORS["naive_s2"])
_MANY = 4000  # points in a scatter plot


def density(
    mixture: GaussianMixture,
    label: int | None = None,
    sigma: float = 0.0,
    *,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """The density of a mixture in one or two dimensions.

    Args:
        mixture: the mixture.
        label: a class, or ``None`` for all.
        sigma: noise level >= 0 of the samples ``x0 + sigma * noise``.
        ax: axes to draw into; new ones by default.

    Raises:
        ValueError: for a mixture of more than two dimensions.
    """
    with _axes(ax, mixture.dim) as axes:
        axis = _axis(mixture, sigma)
        if mixture.dim == 1:
            p = np.exp(mixture.log_prob(_column(axis), sigma, label))
            axes.fill_between(axis, p, color=TRUTH, alpha=0.5, lw=0, label="truth")
            axes.set(xlabel="x", ylabel="density", ylim=(0, None))
        else:
            _contours(axes, mixture, label, sigma, axis, color=TRUTH)
            _square(axes, axis)
        return _figure(axes), axes


def samples(
    samples: ArrayLike | Mapping[str, ArrayLike],
    mixture: GaussianMixture | None = None,
    label: int | None = None,
    *,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Samples in one or two dimensions, over the density that they should have.

    Args:
        samples: samples ``[n, 1]`` or ``[n, 2]``; or several sets by name. In two
            dimensions at most 4,000 points of a set are drawn.
        mixture: the mixture whose density is drawn behind them.
        label: the class whose density is drawn; ``None`` for the whole mixture.
        ax: axes to draw into; new ones by default.

    Raises:
        ValueError: for samples of more than two dimensions, or none, or not finite.
    """
    sets = samples if isinstance(samples, Mapping) else {"samples": samples}
    points = {name: _points(value) for name, value in sets.items()}
    dim = next(iter(points.values())).shape[1]
    with _axes(ax, dim) as axes:
        if mixture is not None:
            density(mixture, label, ax=axes)
        low = min(value.min() for value in points.values())
        high = max(value.max() for value in points.values())
        count = max(len(value) for value in points.values())
        bins = np.linspace(low, high, 2 + min(int(2 * count ** (1 / 3)), 100)).tolist()
        for value, (name, color) in zip(points.values(), _colored(points), strict=True):
            if dim == 1:
                style: dict[str, Any] = {"histtype": "step", "density": True}
                axes.hist(value[:, 0], bins, color=color, label=name, **style)
            else:
                shown = value[:: -(-len(value) // _MANY)]
                axes.scatter(
                    shown[:, 0], shown[:, 1], s=1.0, color=color, lw=0, label=name
                )
        if dim == 1:
            axes.relim()
            axes.autoscale(axis="y")
            axes.set(xlabel="x", ylabel="density", ylim=(0, None))
        else:
            axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        if len(points) > 1:
            axes.legend(markerscale=4)
        return _figure(axes), axes


def field(
    denoiser: Denoiser,
    rules: Mapping[str, GuidanceRule],
    mixture: GaussianMixture,
    label: int | None = None,
    *,
    sigmas: Sequence[float] = (1.0, 2.0, 4.0),
    of: Literal["score", "departure"] = "score",
    grid: int = 65,
) -> tuple[Figure, np.ndarray]:
    """The guided score over the plane, for several rules and noise levels.

    Rows are noise levels and columns are rules, all on one scale: the color is the
    length of ``sigma * score``, so that levels can be compared; arrows have a length by
    its square root. White contours are the class at 1, 2 and 3 standard deviations.

    Args:
        denoiser: the denoiser of two-dimensional samples.
        rules: rules by the title of their column.
        mixture: the data, which gives the extent, the contours and the exact score.
        label: the class; ``None`` for no condition.
        sigmas: noise levels > 0, a row each.
        of: ``"score"``, or ``"departure"`` from the exact conditional score.
        grid: points along each axis, at least 8.

    Returns:
        The figure and its axes ``[sigmas, rules]``.

    Raises:
        ValueError: for a mixture that is not two-dimensional, no rules, levels not
            above 0, another ``of`` or a grid below 8.
    """
    if mixture.dim != 2:
        raise ValueError(f"a field is drawn in 2 dimensions, got {mixture.dim}.")
    if of not in ("score", "departure"):
        raise ValueError(f"of must be 'score' or 'departure', got {of!r}.")
    if not rules or len(sigmas) == 0 or min(sigmas) <= 0 or grid < 8:
        raise ValueError(
            f"rules must not be empty, sigmas must be > 0 and grid at least 8, got "
            f"{list(rules)}, {list(sigmas)} and {grid}."
        )
    axis = np.asarray(_axis(mixture, 0.0, grid), np.float32)
    points = jnp.asarray(_plane(axis))
    exact = ExactDenoiser(mixture)
    fields: dict[tuple[int, str], np.ndarray] = {}
    for row, sigma in enumerate(sigmas):
        base = points
        if of == "departure":
            labels = None if label is None else jnp.full(len(points), label, jnp.int32)
            base = exact(points, jnp.float32(sigma), labels)
        for name, rule in rules.items():
            value = guided_denoise(denoiser, rule, points, sigma, label)
            fields[row, name] = np.asarray(value - base) / sigma
    top = max(np.quantile(_length(value), 0.98) for value in fields.values())
    norm = PowerNorm(0.6, 0.0, max(float(top), 1e-6), clip=True)
    with _style():
        size = (1.9 * len(rules) + 0.9, 1.8 * len(sigmas) + 0.3)
        figure, axes = plt.subplots(
            len(sigmas), len(rules), figsize=size, sharex=True, sharey=True
        )
        axes = np.asarray(axes).reshape(len(sigmas), len(rules))
        for row, sigma in enumerate(sigmas):
            log_density = np.asarray(mixture.log_prob(points, sigma, label))
            for column, name in enumerate(rules):
                drawn = fields[row, name]
                ax = axes[row, column]
                image = draw_field(ax, axis, log_density, drawn, drawn, norm)
                if row == 0:
                    ax.set_title(name)
            axes[row, 0].set_ylabel(f"σ = {sigma:g}")
        what = "score" if of == "score" else "departure from the exact score"
        figure.colorbar(image, ax=axes, label=f"σ · |{what}|", shrink=0.8)
    return figure, axes


def draw_field(
    ax: Axes,
    axis: np.ndarray,
    log_density: np.ndarray,
    color_field: np.ndarray,
    arrows: np.ndarray,
    norm: Normalize,
) -> AxesImage:
    """One panel of a field on a grid, as ``field`` draws it.

    Args:
        ax: axes to draw into.
        axis: coordinates along both axes, ``[grid]``.
        log_density: log density behind the contours, ``[grid * grid]``.
        color_field: the field whose length is the color, ``[grid * grid, 2]``.
        arrows: the field of the arrows, likewise.
        norm: the scale of the color.

    Returns:
        The image, for a color bar.
    """
    size = len(axis)
    extent = (float(axis[0]), float(axis[-1]), float(axis[0]), float(axis[-1]))
    image = ax.imshow(
        _length(color_field).reshape(size, size),
        origin="lower",
        extent=extent,
        norm=norm,
        cmap="viridis",
        interpolation="bilinear",
    )
    log_density = log_density.reshape(size, size)
    # Mahalanobis radii 3, 2, 1 of a Gaussian.
    levels = log_density.max() - 0.5 * np.array([9.0, 4.0, 1.0])
    style: dict[str, Any] = {"colors": "white", "linewidths": 0.6}
    ax.contour(axis, axis, log_density, levels=levels, linestyles="solid", **style)
    pick = np.linspace(0, size - 1, 13).round().astype(int)
    u, v = np.moveaxis(arrows.reshape(size, size, 2)[np.ix_(pick, pick)], -1, 0)
    length = np.sqrt(u**2 + v**2)
    # Length by the square root: direction stays readable where the field is weak.
    factor = np.sqrt(length / max(length.max(), 1e-12)) / np.maximum(length, 1e-12)
    style = {"color": "white", "scale": 13, "width": 0.008, "headwidth": 3.5}
    ax.quiver(axis[pick], axis[pick], u * factor, v * factor, **style)
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    return image


def trajectories(
    paths: ArrayLike | Mapping[str, ArrayLike],
    sigmas: ArrayLike,
    mixture: GaussianMixture,
    *,
    num_paths: int = 60,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Sample paths from noise to data, of ``guided_sample(..., trajectory=True)``.

    States are scaled to constant spread, ``x / sqrt(1 + (sigma / s)^2)`` with the scale
    ``s`` of the mixture, so that the first states are not off the page. In one
    dimension steps run downwards; in two, paths run from gray to their ends.

    Args:
        paths: states ``[steps + 1, n, d]``; or several by name.
        sigmas: noise levels ``[steps + 1]``, of ``schedule.sigmas()``.
        mixture: the data.
        num_paths: paths drawn of each set.
        ax: axes to draw into; new ones by default.

    Raises:
        ValueError: for more than two dimensions, or another number of levels than
            states.
    """
    sets = paths if isinstance(paths, Mapping) else {"paths": paths}
    with _axes(ax, mixture.dim) as axes:
        if mixture.dim == 1:
            for mean, variance in zip(
                np.ravel(mixture.means), np.ravel(mixture.variances), strict=True
            ):
                std = np.sqrt(variance)
                axes.axvspan(mean - std, mean + std, color=TRUTH, alpha=0.4, lw=0)
        else:
            density(mixture, ax=axes)
        for path, (name, color) in zip(sets.values(), _colored(sets), strict=True):
            states = scaled_states(path, sigmas, mixture)[:, :num_paths]
            style: dict[str, Any] = {"color": color, "lw": 0.5, "alpha": 0.6}
            if mixture.dim == 1:
                lines = axes.plot(states[..., 0], np.arange(len(states)), **style)
            else:
                lines = axes.plot(*np.moveaxis(states, -1, 0), **style)
                axes.scatter(
                    states[-1, :, 0], states[-1, :, 1], s=3, color=color, zorder=3
                )
            lines[0].set_label(name)
        if mixture.dim == 1:
            axes.set(xlabel="x, scaled to constant spread", ylabel="step")
            axes.set_ylim(len(np.asarray(sigmas)) - 1, 0)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(sets) > 1:
            axes.legend()
        return _figure(axes), axes


def animate(
    path: ArrayLike,
    sigmas: ArrayLike,
    mixture: GaussianMixture,
    label: int | None = None,
    *,
    interval: int = 120,
) -> FuncAnimation:
    """An animation of samples from noise to data, in one or two dimensions.

    Args:
        path: states ``[steps + 1, n, d]``, of ``guided_sample(..., trajectory=True)``.
        sigmas: noise levels ``[steps + 1]``.
        mixture: the data.
        label: the class whose density is drawn behind.
        interval: milliseconds of a frame.

    Returns:
        The animation: ``.save("sampling.gif")``, ``.to_jshtml()`` in a notebook. Keep a
        reference to it while it is shown.

    Raises:
        ValueError: as ``trajectories``.
    """
    states = scaled_states(path, sigmas, mixture)
    levels = np.asarray(sigmas)
    with _style():
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, COLUMN_WIDTH))
        limits = axes.get_xlim(), axes.get_ylim()

    def draw(frame: int) -> list[Any]:
        nonlocal limits
        axes.clear()
        samples(states[frame], mixture, label, ax=axes)
        if frame == 0:
            high = 1.1 * float(np.abs(states).max())
            limits = (-high, high), axes.get_ylim()
        axes.set_xlim(limits[0])
        if mixture.dim == 2:
            axes.set_ylim(limits[0])
        axes.set_title(f"step {frame}, σ = {levels[frame]:.3g}")
        return []

    return FuncAnimation(figure, draw, frames=len(states), interval=interval)


def profile(
    effect: WeakPassEffect, *, mode: int = 0, axes: Sequence[Axes] | None = None
) -> tuple[Figure, np.ndarray]:
    """Slope and push of a weak pass over the noise level, of ``weak_pass_effect``.

    Args:
        effect: the effect.
        mode: the mode of the class.
        axes: two axes to draw into; new ones by default.

    Returns:
        The figure and the axes of slope and push, each with a band of one standard
        error.
    """
    names = (("slope", "slope A"), ("push", "push B, in units of the data"))
    with _style():
        if axes is None:
            size = (2 * COLUMN_WIDTH, 2.0)
            axes = plt.subplots(1, 2, figsize=size, sharex=True)[1]
        for ax, (name, title) in zip(axes, names, strict=True):
            value = getattr(effect, name)[:, mode]
            error = getattr(effect, f"{name}_error")[:, mode]
            ax.plot(effect.sigmas, value, color=COLORS["s2"])
            style: dict[str, Any] = {"color": COLORS["s2"], "alpha": 0.25, "lw": 0}
            ax.fill_between(effect.sigmas, value - error, value + error, **style)
            ax.axhline(0.0, color=TRUTH, lw=0.6)
            ax.set(xscale="log", xlabel="σ", title=title)
        return _figure(axes[0]), np.asarray(axes)


def comparison(
    compared: Comparison, metric: str, *, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """A metric of each rule of ``gg.compare``, with its standard error over networks.

    Rules are rows. Hollow marks are the same rule with the exact denoiser, the gray
    band is the floor of true samples and its standard error.

    Args:
        compared: the comparison.
        metric: one of ``compared.metrics``.
        ax: axes to draw into; new ones by default.

    Raises:
        ValueError: for an unknown metric.
    """
    compared.check_metric(metric)
    rules = list(dict.fromkeys(row.rule for row in compared.rows))
    groups = list(dict.fromkeys(row.denoisers for row in compared.rows))
    with _style():
        if ax is None:
            size = (COLUMN_WIDTH, 0.6 + 0.25 * len(rules))
            ax = plt.subplots(figsize=size)[1]
        floor, width = (compared.floor[metric][k] for k in ("mean", "standard_error"))
        ax.axvspan(floor - width, floor + width, color=TRUTH, alpha=0.5, lw=0.8)
        for index, group in enumerate(groups):
            is_exact = group == "exact"
            color = TRUTH if is_exact else _PALETTE[(index - 1) % len(_PALETTE)]
            rows = [row for row in compared.rows if row.denoisers == group]
            values, errors = np.transpose([row.estimate(metric) for row in rows])
            places = np.array([rules.index(row.rule) for row in rows], float)
            style: dict[str, Any] = {"color": color, "fmt": "o", "ms": 4}
            style |= {"mfc": "none" if is_exact else color, "label": group}
            offset = 0.12 * (index - 0.5 * (len(groups) - 1))
            ax.errorbar(values, places + offset, xerr=np.nan_to_num(errors), **style)
        ax.set_yticks(range(len(rules)), rules)
        ax.set_ylim(len(rules) - 0.5, -0.5)
        ax.set_xlabel(metric)
        ax.legend()
        return _figure(ax), ax


def scaled_states(
    path: ArrayLike, sigmas: ArrayLike, mixture: GaussianMixture
) -> np.ndarray:
    """States of constant spread, ``[steps + 1, n, d]``: see ``trajectories``.

    Raises:
        ValueError: for more than two dimensions or another number of levels.
    """
    states, levels = np.asarray(path), np.asarray(sigmas)
    if states.ndim != 3 or len(states) != len(levels):
        raise ValueError(
            f"paths must be [steps + 1, n, d] with a noise level for each state, got "
            f"states {states.shape} and {levels.shape} levels. Sample with "
            f"trajectory=True and pass schedule.sigmas()."
        )
    _check_dim(states.shape[-1])
    spread = np.sqrt(1.0 + (levels / float(mixture.scale)) ** 2)
    return states / spread[:, None, None]


@contextmanager
def _style() -> Iterator[None]:
    with plt.rc_context(FIGURE_SETTINGS):  # type: ignore[arg-type]
        yield


@contextmanager
def _axes(ax: Axes | None, dim: int) -> Iterator[Axes]:
    _check_dim(dim)
    with _style():
        if ax is None:
            height = (0.75 if dim == 1 else 1.0) * COLUMN_WIDTH
            ax = plt.subplots(figsize=(COLUMN_WIDTH, height))[1]
        yield ax


def _figure(ax: Axes) -> Figure:
    return ax.get_figure(root=True)  # type: ignore[return-value]


def _colored(sets: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A color for each name: the method's own where it is one of the experiments'."""
    return [
        (name, COLORS.get(name, _PALETTE[i % len(_PALETTE)]))
        for i, name in enumerate(sets)
    ]


def _check_dim(dim: int) -> None:
    if dim not in (1, 2):
        raise ValueError(
            f"only 1 and 2 dimensions are drawn, got {dim}. Choose two of them: "
            f"x[..., [0, 1]], with the mixture of these."
        )


def _points(values: ArrayLike) -> np.ndarray:
    points = np.asarray(values)
    if points.ndim != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"samples must be finite and of shape [n, d], got shape {points.shape}."
        )
    _check_dim(points.shape[1])
    return points


def _axis(mixture: GaussianMixture, sigma: float, grid: int = 161) -> np.ndarray:
    """Coordinates that hold the modes and 4 standard deviations around them."""
    _check_dim(mixture.dim)
    covariances = np.asarray(mixture.covariances)
    std = np.sqrt(np.trace(covariances, axis1=1, axis2=2).max() + sigma**2)
    means = np.asarray(mixture.means)
    return np.linspace(means.min() - 4 * std, means.max() + 4 * std, grid)


def _column(axis: np.ndarray) -> np.ndarray:
    return axis[:, None].astype(np.float32)


def _plane(axis: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)


def _contours(ax: Axes, mixture, label, sigma: float, axis: np.ndarray, color: str):
    log_prob = np.asarray(mixture.log_prob(_plane(axis), sigma, label))
    log_prob = log_prob.reshape(len(axis), len(axis))
    levels = log_prob.max() - 0.5 * np.array([9.0, 4.0, 1.0])
    style: dict[str, Any] = {"colors": color, "linewidths": 0.7, "linestyles": "solid"}
    ax.contour(axis, axis, log_prob, levels=levels, **style)


def _square(ax: Axes, axis: np.ndarray) -> None:
    limits = float(axis[0]), float(axis[-1])
    ax.set(xlim=limits, ylim=limits, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


def _length(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(values**2, axis=-1))
