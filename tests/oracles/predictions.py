"""Predictions made of given numbers, handed to a rule without any network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance import Pass


class Point(NamedTuple):
    """Conditional and unconditional ``D`` at noisy samples ``x`` of one noise level."""

    cond: np.ndarray
    uncond: np.ndarray
    x: np.ndarray
    sigma: float

    def sample(self, i: int) -> Point:
        """One sample as a batch of its own."""
        rows = (array[i : i + 1] for array in self[:3])
        return Point(*rows, self.sigma)


def random_point(seed=0, shape=(5, 2, 3), sigma=1.7) -> Point:
    """Predictions of order one that differ by about as much."""
    rng = np.random.default_rng(seed)
    cond, uncond, noise = rng.normal(size=(3, *shape)).astype(np.float32)
    uncond = cond + 0.6 * uncond
    return Point(cond, uncond, cond + np.float32(sigma) * noise, sigma)


def step(rule: Any, point: Point, state: Any = None, weak=()) -> tuple[Any, Any]:
    """The guided value and the next state."""
    x = jnp.asarray(point.x)
    outputs = outputs_of(rule, {None: point.cond, "uncond": point.uncond}, weak)
    state = rule.init(x) if state is None else state
    return rule.combine(outputs, x, jnp.asarray(point.sigma, jnp.float32), state)


def outputs_of(rule: Any, rows: dict[Any, Any], weak=()) -> Any:
    """A rule's tree with given predictions in the places of its passes.

    Args:
        rule: the rule.
        rows: predictions by model; ``"uncond"`` for passes without a label.
        weak: predictions of passes that drop blocks, in the order of the masks drawn.
    """
    label, masks = object(), Masks(len(weak))

    def predict(p):
        assert p.label is None or p.label is label
        if p.drop is not None:
            return jnp.asarray(weak[int(p.drop[0])])
        return jnp.asarray(rows["uncond" if p.label is None else p.model])

    is_pass = lambda leaf: isinstance(leaf, Pass)  # noqa: E731
    return jax.tree.map(predict, rule.passes(label, rule.draw(masks)), is_leaf=is_pass)


class Masks:
    """Stands for a rule's source of random draws: mask i drops block i."""

    def __init__(self, num_masks: int):
        self.left = iter(range(num_masks))

    def dropped_blocks(
        self, distribution, num_masks=1, redraw="step", per_sample=False
    ):
        return tuple(np.array([next(self.left)]) for _ in range(num_masks))


def value(rule: Any, point: Point, weak=()) -> Any:
    """The guided value alone."""
    return step(rule, point, weak=weak)[0]


def flow_velocity(denoised, x, sigma):
    """Noise minus data: the velocity of the straight path, in float64."""
    denoised, x = np.asarray(denoised, float), np.asarray(x, float)
    return (x - denoised) / sigma - denoised


def from_flow_velocity(velocity, x, sigma):
    """``x_t - t v``, with ``x_t = x / (1 + sigma)`` and ``t = sigma / (1 + sigma)``."""
    return (np.asarray(x, float) - sigma * np.asarray(velocity, float)) / (1 + sigma)
