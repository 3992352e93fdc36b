"""What the weak passes of a rule will do to samples, predicted without sampling.

On the noised samples of a mode with mean ``m``, the correction of a rule with weak
passes is, to first order in ``x``,

    E[D_c - D_weak] ~ A(sigma) (x - m) + B(sigma) r,                             (1)

with the expectation over random masks, a slope ``A``, and a push ``B`` along the unit
vector ``r`` that points outward. Added to the denoiser with weight ``omega``, it
changes the flow ``d(x - m) / d log sigma = (1 - alpha) (x - m)`` of a Gaussian class
``N(m, v I)``, ``alpha = v / (v + sigma^2)``. To first order in ``omega``,

    change of log width                 = int omega A d log sigma                (2)
    outward shift of the mean,
    in standard deviations of the mode  = int omega B / sqrt(v + sigma^2) d log sigma

over the noise levels at which the term acts.

In a class of several modes the flow is not linear, and moves samples between modes at
high noise. There (2) follows from the change of the density: a correction ``u`` at
noise level sigma changes the log density of the class by ``omega d log sigma`` times

    s(x) = -(div u + u . grad log p_sigma(x)),                                   (3)

which the flow carries unchanged to the clean sample ``x_0(x)``. The change of any mean
``E[f(x_0)]`` is therefore ``int omega E[f(x_0(x)) s(x)] d log sigma``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import check_count, check_key
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.analysis.mode_density import density_changes
from gmm_guidance.analysis.mode_fit import Mode, Points
from gmm_guidance.blocks.drop import FixedBlocks, FixedCount, eligible_blocks
from gmm_guidance.blocks.evaluate import Pass, check_denoiser, evaluate_passes
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, levels_of
from gmm_guidance.guidance.draws import RandomDraws, UndrawnDraws
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unguided,
    check_rule,
    full_precision,
)
from gmm_guidance.guidance.scale import known_scale_at
from gmm_guidance.guidance.weak import WeakTerm
from gmm_guidance.guidance.windows import Position
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture, check_mixture
from gmm_guidance.sampling.guided_denoise import num_blocks_of

_MOST_SETS = 64  # sets of dropped blocks are enumerated up to this number


@dataclasses.dataclass(frozen=True)
class WeakPassEffect:
    """Slope and push of the weak passes of a rule, and what they do to each mode.

    Attributes:
        sigmas: noise levels, descending, ``[s]``: both ends of each step of the
            schedule in which the weak term acts.
        weights: weight of each level in the integrals of Eq. 2, ``[s]``: the weight of
            the term times ``d log sigma`` by the trapezoidal rule.
        slope: ``A``, ``[s, modes]``; the mean over the principal axes of an anisotropic
            mode, weighted by their variances.
        slope_error: its standard error.
        push: ``B`` in units of the data, ``[s, modes]``; positive away from the center,
            NaN for a mode at the center.
        push_error: its standard error.
        log_width_change: predicted change of the log of the mode's root mean square
            standard deviation, ``[modes]``.
        log_width_change_error: its standard error.
        shift_change: predicted outward shift of the mode's mean, in standard deviations
            of the mode along that direction, ``[modes]``; NaN as ``push``.
        shift_change_error: its standard error.
        means: means of the modes, ``[modes, d]``.
        stds: their root mean square standard deviations, ``[modes]``.
        directions: outward unit vectors, ``[modes, d]``; NaN for a mode at the center.
    """

    sigmas: np.ndarray
    weights: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    push: np.ndarray
    push_error: np.ndarray
    log_width_change: np.ndarray
    log_width_change_error: np.ndarray
    shift_change: np.ndarray
    shift_change_error: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    directions: np.ndarray

    def distance_change(self, shift: ArrayLike, width: ArrayLike) -> np.ndarray:
        """Predicted change of each mode's Wasserstein distance, to first order.

        For Gaussian samples of an isotropic mode in ``d`` dimensions, ``W2^2 = shift^2
        + d (1 - width)^2`` in standard deviations of the mode. The same term helps or
        harms depending on the samples without it: it helps where it undoes their shift
        and their change of width.

        Args:
            shift: outward shift of the samples without the term, in standard
                deviations of the mode, a number or ``[modes]``.
            width: their standard deviation over that of the mode, > 0.

        Returns:
            The change of ``W2`` in standard deviations of the mode, ``[modes]``;
            negative if the term helps, NaN where the samples have no error.
        """
        shift, width = np.asarray(shift, float), np.asarray(width, float)
        dim = self.means.shape[1]
        distance = np.sqrt(shift**2 + dim * (1.0 - width) ** 2)
        change = shift * self.shift_change
        change = change - dim * (1.0 - width) * width * self.log_width_change
        return change / np.where(distance > 0, distance, np.nan)

    def records(self) -> list[dict[str, float | int]]:
        """A flat record for each mode and level, for tables, figures and JSON."""
        names = ("slope", "slope_error", "push", "push_error")
        return [
            {
                "mode": mode,
                "sigma": float(sigma),
                "weight": float(self.weights[level]),
                **{name: float(getattr(self, name)[level, mode]) for name in names},
            }
            for mode in range(len(self.means))
            for level, sigma in enumerate(self.sigmas)
        ]


def weak_pass_effect(
    denoiser: Denoiser,
    mixture: GaussianMixture,
    label: int | None,
    guidance: GuidanceRule,
    schedule: Schedule,
    *,
    key: jax.Array | None = None,
    num_samples: int = 2048,
    modes: Sequence[int] | None = None,
    center: ArrayLike | None = None,
    num_masks: int = 8,
    batch_size: int = 4096,
) -> WeakPassEffect:
    """Predict what the weak passes of a rule will do to the samples of a class.

    Slope and push are a least-squares fit on noised true samples. The same samples and
    noise are used at all noise levels, which the standard errors of the integrals
    account for. The prediction is of first order, against the flow of the exact
    conditional denoiser: it omits that guidance and learning errors change that flow.

    Args:
        denoiser: the network; a ``BlockStack`` if the rule drops blocks.
        mixture: the data distribution.
        label: the class, or ``None`` for unconditional samples.
        guidance: ``S2Guidance``, ``SkipLayer``, ``AutoGuidance`` or another rule that
            adds a multiple of ``D_c - D_weak``, also in a ``Windowed``. Only this term
            is measured, not the rule to which it is added.
        schedule: noise levels of the sampling run. They should resolve the flow: the
            integrals are trapezoidal sums over its steps.
        key: for samples, noise and masks; a fixed one by default.
        num_samples: samples of each mode, at least 8.
        modes: the mode to which each component of the class belongs, integers ``0 ..``,
            in the order of the components; by default each component is a mode.
        center: the point away from which is "outward", ``[d]``; by default the mean of
            the whole mixture, away from which CFG pushes. In one dimension, outward is
            the side of the center on which the mode lies.
        num_masks: random sets of blocks drawn for each sample and level if the
            expectation over masks is not exact. It is exact for ``FixedBlocks``, and
            for ``FixedCount`` with up to 64 sets.
        batch_size: number of samples evaluated at once; does not change the result.

    Returns:
        Slope, push and the two predicted changes, with standard errors.

    Raises:
        ValueError: if the weak term does not act in this run, changes within it, is not
            a multiple of ``D_c - D_weak`` (``form``), or has a traced weight; or for
            counts, modes or a center out of range.
        TypeError: if the rule has more than one weak term, or drops blocks of a
            denoiser without blocks.
    """
    key = jax.random.key(0) if key is None else key
    check_key(key)
    check_denoiser(denoiser)
    check_rule(guidance)
    check_mixture(mixture)
    for name, value in (("num_samples", num_samples), ("num_masks", num_masks)):
        check_count(name, value)
    check_count("batch_size", batch_size)
    if num_samples < 8 or num_masks < 1 or batch_size < 1:
        raise ValueError(
            f"num_samples must be at least 8, num_masks and batch_size at least 1, got "
            f"{num_samples}, {num_masks} and {batch_size}."
        )
    levels = levels_of(schedule)
    data = _by_mode(mixture, label, modes)
    origin = np.asarray(mixture.mean() if center is None else center, np.float64)
    if origin.shape != (mixture.dim,):
        raise ValueError(
            f"center must have shape {(mixture.dim,)}, got {origin.shape}."
        )
    term, sigmas, weights = _weak_term(guidance, levels, num_blocks_of(denoiser))
    shapes = [Mode.of(data, mode, origin) for mode in range(data.num_labels)]
    single = data.num_components == 1

    measured = _Measured(denoiser, term, num_masks, with_divergence=not single)
    points = [
        measured.at_noised_samples(
            data, mode, label, sigmas, key, num_samples, batch_size
        )
        for mode in range(len(shapes))
    ]
    fits = [
        shape.regress(found.x, found.correction)
        for shape, found in zip(shapes, points, strict=True)
    ]
    slopes = [s.slope(f) for s, f in zip(shapes, fits, strict=True)]
    pushes = [s.push(f) for s, f in zip(shapes, fits, strict=True)]
    if single:
        widths, shifts = slopes, [shapes[0].shift(fits[0], sigmas)]
    else:
        widths, shifts = density_changes(data, shapes, points, sigmas)

    def per_mode(values) -> np.ndarray:
        return np.stack(list(values), axis=-1)

    return WeakPassEffect(
        sigmas=sigmas,
        weights=weights,
        slope=per_mode(e.value for e in slopes),
        slope_error=per_mode(e.error() for e in slopes),
        push=per_mode(e.value for e in pushes),
        push_error=per_mode(e.error() for e in pushes),
        log_width_change=per_mode(weights @ e.value for e in widths),
        log_width_change_error=per_mode(e.error(weights) for e in widths),
        shift_change=per_mode(weights @ e.value for e in shifts),
        shift_change_error=per_mode(e.error(weights) for e in shifts),
        means=np.stack([s.mean for s in shapes]),
        stds=np.array([math.sqrt(s.variances.mean()) for s in shapes]),
        directions=np.stack([s.outward for s in shapes]),
    )


# -- the rule ------------------------------------------------------------------------


def _weak_term(
    guidance: GuidanceRule, levels: np.ndarray, num_blocks: int | None
) -> tuple[WeakTerm, np.ndarray, np.ndarray]:
    """The weak term, the levels ``[s]`` of its steps, and their integral weights."""
    num_steps = len(levels) - 1
    terms: list[Any] = []
    used = np.zeros(num_steps, bool)
    weights = np.zeros(num_steps)
    for step in range(num_steps):
        sigma, after = float(levels[step]), float(levels[step + 1])
        term = guidance.at(Position(step / num_steps, sigma, step, num_steps))
        if not isinstance(term, WeakTerm):
            continue
        terms.append(term)
        used[step] = True
        if after > 0:
            half = 0.5 * math.log(sigma / after)
            weights[step] += half * _weight(term, sigma)
            weights[step + 1] += half * _weight(term, after)
            used[step + 1] = True
        else:  # the last step leads to D itself
            weights[step] += _weight(term, sigma)
    if not terms:
        raise ValueError(
            f"{type(guidance).__name__} has no weak term that acts in the {num_steps} "
            f"steps of the schedule. Use S2Guidance, SkipLayer or AutoGuidance with a "
            f"weight other than zero and a window that contains a step."
        )
    if any(
        _signature(t, num_blocks) != _signature(terms[0], num_blocks) for t in terms
    ):
        raise ValueError(
            "the weak passes of the rule change within the run; measure each kind by "
            "itself, since first-order changes add up."
        )
    return terms[0], levels[:-1][used], weights[used]


def _weight(term: WeakTerm, sigma: float) -> float:
    value = known_scale_at(term.weak_scale, sigma)
    if value is None:
        raise ValueError(
            "the weight of the weak term must be a number or a SigmaCurve of numbers; "
            "call weak_pass_effect outside jax.jit."
        )
    return value


def _signature(term: WeakTerm, num_blocks: int | None) -> Any:
    """What the weak passes are, comparable; checks that there is one weak term."""
    if isinstance(term.rule, WeakTerm):
        raise TypeError(
            "the rule has more than one weak term; measure each by itself, since "
            "first-order changes add up."
        )
    if term.form != "centered":
        raise ValueError(
            f"form must be 'centered', a multiple of D_c - D_weak, got {term.form!r}."
        )
    if term.one_sided:
        raise ValueError(
            "a one-sided term depends on D_u as well, so that its effect does not "
            "follow from the weak passes; measure it with one_sided=False."
        )
    none = jax.random.key(0), jnp.uint32(0), jnp.uint32(0), num_blocks, jnp.zeros(1)
    passes = term.weak_passes(None, term.draw_weak(UndrawnDraws(*none)))
    return jax.tree.structure(passes), [id(p.model) for p in passes]


class _ExpectedMasks(RandomDraws):
    """Masks for the expectation: all sets if they are few, else some per sample.

    Sets per sample keep the samples independent of each other, so that the spread over
    samples includes that of the masks.
    """

    def __init__(self, key, level, num_blocks, sample_index, num_masks: int):
        super().__init__(key, level, jnp.uint32(0), num_blocks, sample_index)
        self._num_masks = num_masks

    @override
    def dropped_blocks(
        self, distribution, num_masks=1, redraw="step", per_sample=False
    ):
        if isinstance(distribution, FixedBlocks):
            return super().dropped_blocks(distribution)
        if isinstance(distribution, FixedCount) and self.num_blocks is not None:
            eligible = eligible_blocks(self.num_blocks, distribution.protected)
            if math.comb(len(eligible), distribution.num_dropped) <= _MOST_SETS:
                return super().dropped_blocks(distribution, "all")
        return super().dropped_blocks(
            distribution, self._num_masks, "step", per_sample=True
        )


# -- the corrections -----------------------------------------------------------------


class _Measured(NamedTuple):
    """The correction ``E[D_c - D_weak]`` of a denoiser."""

    denoiser: Any
    term: WeakTerm
    num_masks: int
    with_divergence: bool

    def at_noised_samples(
        self,
        data: GaussianMixture,
        mode: int,
        label: int | None,
        sigmas: np.ndarray,
        key: jax.Array,
        num_samples: int,
        batch_size: int,
    ) -> Points:
        """At true samples of a mode with the same noise at all levels."""
        data_key, noise_key, mask_key = jax.random.split(
            jax.random.fold_in(key, mode), 3
        )
        clean = _draw_mode(data, mode, data_key, num_samples)
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        term = self.term.added_to(Unguided())
        arrays, static = split((self.denoiser, term))
        options = (self.num_masks, self.with_divergence)
        levels = jnp.asarray(sigmas, clean.dtype)
        index = jnp.arange(num_samples, dtype=jnp.uint32)
        parts = []
        for start in range(0, num_samples, batch_size):
            batch = (a[start : start + batch_size] for a in (clean, noise, index))
            found = _correct(static, options, arrays, levels, label, mask_key, *batch)
            parts.append([np.asarray(a, np.float64) for a in found])
        return Points(*(np.concatenate(a, axis=1) for a in zip(*parts, strict=True)))


def _draw_mode(
    data: GaussianMixture, mode: int, key: jax.Array, num_samples: int
) -> jax.Array:
    """Clean samples of a mode, ``[n, d]``."""
    component_key, normal_key = jax.random.split(key)
    members = np.flatnonzero(data.labels == mode)
    up_to = np.cumsum(np.asarray(data.weights, np.float64)[members])
    uniform = np.asarray(jax.random.uniform(component_key, (num_samples,)))
    chosen = members[np.searchsorted(up_to[:-1] / up_to[-1], uniform)]
    normal = np.asarray(jax.random.normal(normal_key, (num_samples, data.dim)))
    roots = np.linalg.cholesky(np.asarray(data.covariances, np.float64))
    clean = np.einsum("nij,nj->ni", roots[chosen], normal)
    return jnp.asarray(np.asarray(data.means)[chosen] + clean, data.means.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correct(
    static: Static,
    options: tuple[int, bool],
    arrays: list[Any],
    sigmas: jax.Array,
    label: Any,
    mask_key: jax.Array,
    clean: jax.Array,
    noise: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, ...]:
    denoiser, term = join(arrays, static)
    num_masks, with_divergence = options
    if label is not None:
        label = jnp.full(len(clean), label, jnp.int32)

    def at(inputs):
        sigma, level = inputs
        random = _ExpectedMasks(
            mask_key, level, num_blocks_of(denoiser), index, num_masks
        )
        weak = term.weak_passes(label, term.draw_weak(random))

        def correction(x):
            outputs = evaluate_passes(denoiser, x, sigma, (Pass(label), weak))
            cond, values = full_precision(outputs, x)
            # The mean of differences: zero where weak passes equal the conditional one.
            return jnp.mean(cond[None] - jnp.stack(values), axis=0)

        x = clean + sigma * noise
        if not with_divergence:
            return x, correction(x), jnp.zeros(len(x))

        def derivative(axis):
            along = jnp.zeros_like(x).at[:, axis].set(1.0)
            return jax.jvp(correction, (x,), (along,))[1][:, axis]

        axes = jnp.arange(x.shape[1])
        return x, correction(x), jax.lax.map(derivative, axes).sum(axis=0)

    return jax.lax.map(at, (sigmas, jnp.arange(len(sigmas), dtype=jnp.uint32)))


# -- the modes -----------------------------------------------------------------------


def _by_mode(
    mixture: GaussianMixture, label: int | None, modes: Sequence[int] | None
) -> GaussianMixture:
    """The mixture of the class, with its modes as labels."""
    part = mixture if label is None else mixture.condition(label)
    count = part.num_components
    labels = np.arange(count) if modes is None else np.asarray(modes)
    if labels.shape != (count,) or set(labels.tolist()) != set(range(labels.max() + 1)):
        raise ValueError(
            f"modes must name a mode for each of the {count} components of the class, "
            f"integers that cover 0, 1, ..., got {modes!r}."
        )
    return GaussianMixture(part.means, part.covariances, part.weights, labels)
