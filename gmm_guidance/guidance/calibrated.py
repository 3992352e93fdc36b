"""A rule whose coefficients were measured: one for each feature, over the noise level.

``D = D_c + sum_k beta_k(sigma) (D_c - D_k)``, with ``D_k`` the unconditional pass or a
conditional one with blocks left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.guidance.features import CFG_FEATURE, Feature, feature_passes
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.windows import Position


@guidance_rule
class CalibratedGuidance(GuidanceRule):
    """Guidance by coefficients over the noise level, as ``calibrate`` measures them.

    ``D_c + sum_k beta_k(sigma) (D_c - D_k)``. The coefficients sum to one, so the rule
    is the same in x0, noise, velocity and score. A CFG coefficient ``beta`` is a total
    CFG scale of ``1 + beta``; a block's is the S² scale of always dropping that block.
    Cost: one pass, one more if CFG is among the features, and for each weak feature the
    blocks after its first dropped one; no pass for a feature where its coefficient is
    zero.

    Args:
        sigmas: noise levels, ascending, ``[S]``.
        coefficients: ``beta`` at these levels, ``[S, k]``. Between levels they are
            linear in ``log sigma``; beyond the first and the last they stay.
        features: what each column belongs to: ``"cfg"``, or a tuple of dropped blocks.

    Raises:
        ValueError: if shapes do not fit, or levels are not positive and ascending.
    """

    sigmas: ArrayLike
    coefficients: ArrayLike
    features: tuple[Feature, ...] = static()
    columns: tuple[int, ...] | None = static(default=None)

    def __post_init__(self):
        # Transformations of pytrees put placeholders in the fields: those pass.
        if isinstance(self.sigmas, np.ndarray | jax.Array):
            _check(self.sigmas, self.coefficients, self.features)

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """With CFG it does."""
        return CFG_FEATURE in self.features

    def at(self, position: Position) -> GuidanceRule:
        """The rule with the features whose coefficients are not zero here."""
        values = as_concrete(self.coefficients)
        if values is None:
            return self
        here = [
            np.interp(np.log(position.sigma), np.log(np.asarray(self.sigmas)), column)
            for column in values.T
        ]
        columns = tuple(k for k, value in enumerate(here) if value != 0.0)
        return dataclasses.replace(self, columns=columns) if columns else Unguided()

    def without_weak_passes(self) -> GuidanceRule:
        """CFG alone, with its coefficients."""
        columns = tuple(k for k in self._columns() if self.features[k] == CFG_FEATURE)
        return dataclasses.replace(self, columns=columns) if columns else Unguided()

    def passes(self, label: Any, draws: Any):
        """Conditional, then one for each feature that acts."""
        return feature_passes([self.features[k] for k in self._columns()], label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``."""
        cond = outputs[0]
        levels = jnp.log(jnp.asarray(self.sigmas, jnp.result_type(float)))
        values = jnp.asarray(self.coefficients, jnp.result_type(float))
        guided = cond
        for row, k in enumerate(self._columns(), start=1):
            beta = jnp.interp(jnp.log(sigma), levels, values[:, k])
            guided = guided + beta.astype(cond.dtype) * (cond - outputs[row])
        return guided, state

    def _columns(self) -> tuple[int, ...]:
        return (
            tuple(range(len(self.features))) if self.columns is None else self.columns
        )


def _check(sigmas: Any, coefficients: Any, features: tuple[Feature, ...]) -> None:
    expected = (np.shape(sigmas)[0] if np.ndim(sigmas) == 1 else None, len(features))
    if np.shape(coefficients) != expected:
        raise ValueError(
            f"coefficients must have shape [levels, features] = {expected} for sigmas "
            f"of shape {np.shape(sigmas)} and {len(features)} features, got "
            f"{np.shape(coefficients)}."
        )
    levels = as_concrete(sigmas)
    if levels is not None and not (levels[0] > 0 and np.all(np.diff(levels) > 0)):
        raise ValueError(
            f"sigmas must be positive and ascending, got {levels[:5].tolist()}..."
        )
