"""Guidance with measured coefficients, one for each feature, over the noise level.

A feature is a difference ``D_c - D_k`` along which guidance can push, with a pass ``k``
that is the unconditional one (``"cfg"``), or the conditional one with a set of blocks
dropped (a tuple of block indices).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.blocks.drop import FixedBlocks, eligible_blocks
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unguided,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.scale import SigmaCurve, known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position

Feature = str | tuple[int, ...]
CFG_FEATURE = "cfg"


@guidance_rule
class CalibratedGuidance(GuidanceRule):
    """Guidance with coefficients over the noise level, as ``calibrate`` measures them.

    ``D_c + sum_k beta_k(sigma) (D_c - D_k)``. The coefficients sum to one, so the rule
    is the same in x0, noise, velocity and score. A CFG coefficient ``beta`` is a total
    CFG scale of ``1 + beta``; that of a block is the S² scale of always dropping it.
    Cost: one pass, one more if CFG is among the features, and for each weak feature the
    blocks after its first dropped one; no pass for a feature where its coefficient is
    zero.

    Args:
        sigmas: noise levels, ascending, ``[S]``.
        coefficients: ``beta`` at these levels, ``[S, k]``. Linear in ``log sigma``
            between levels, constant beyond the first and the last.
        features: the feature of each column: ``"cfg"``, or a tuple of dropped blocks.
        columns: the columns in use; all by default.

    Raises:
        ValueError: if shapes do not fit, levels are not positive and ascending, or a
            coefficient is not finite.
    """

    sigmas: ArrayLike
    coefficients: ArrayLike
    features: tuple[Feature, ...] = static_field()
    columns: tuple[int, ...] | None = static_field(default=None)

    def __post_init__(self):
        # Transformations of pytrees put placeholders in the fields: those pass.
        if not isinstance(self.sigmas, np.ndarray | jax.Array):
            return
        wanted = (*np.shape(self.sigmas), len(self.features))
        if np.ndim(self.sigmas) != 1 or np.shape(self.coefficients) != wanted:
            raise ValueError(
                f"coefficients must have shape [levels, features] = {wanted} for "
                f"sigmas of shape {np.shape(self.sigmas)} and {len(self.features)} "
                f"features, got {np.shape(self.coefficients)}."
            )
        for k in range(len(self.features)):
            self._curve(k)

    @override
    def at(self, position: Position) -> GuidanceRule:
        if as_concrete(self.coefficients) is None:
            return self
        return self._with_columns(
            k
            for k in self._columns()
            if known_scale_at(self._curve(k), position.sigma) != 0.0
        )

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return self._with_columns(
            k for k in self._columns() if self.features[k] == CFG_FEATURE
        )

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return feature_passes([self.features[k] for k in self._columns()], label)

    @override
    def combine(self, outputs, x, sigma, state):
        cond, *others = outputs
        guided = cond
        for k, other in zip(self._columns(), others, strict=True):
            beta = scale_at(self._curve(k), sigma)
            guided = guided + beta.astype(cond.dtype) * (cond - other)
        return guided, state

    def _columns(self) -> Sequence[int]:
        return range(len(self.features)) if self.columns is None else self.columns

    def _with_columns(self, columns: Any) -> GuidanceRule:
        columns = tuple(columns)
        return dataclasses.replace(self, columns=columns) if columns else Unguided()

    def _curve(self, k: int) -> SigmaCurve:
        return SigmaCurve(self.sigmas, self.coefficients[:, k])  # type: ignore[index]


def all_features(model: Any, protected: tuple[int, ...] = (0,)) -> tuple[Feature, ...]:
    """``"cfg"`` and each unprotected block alone; ``"cfg"`` of a model without blocks.

    Raises:
        ValueError: if every block is protected.
    """
    if not is_block_stack(model):
        return (CFG_FEATURE,)
    blocks = eligible_blocks(model.num_blocks, protected)
    return (CFG_FEATURE, *((int(b),) for b in blocks))


def check_features(features: Sequence[Any], model: Any) -> tuple[Feature, ...]:
    """The features in canonical form.

    Raises:
        ValueError: for no feature, one that is listed twice, an unknown name, or blocks
            that the model does not have.
        TypeError: for blocks of a model without blocks.
    """
    result: list[Feature] = []
    for feature in features:
        if isinstance(feature, str):
            if feature != CFG_FEATURE:
                raise ValueError(
                    f'a feature must be "cfg" or a tuple of blocks such as (3,), got '
                    f"{feature!r}."
                )
            result.append(feature)
            continue
        if not is_block_stack(model):
            raise TypeError(
                f"feature {feature!r} drops blocks, but {type(model).__name__} is not "
                f'a BlockStack; use features=("cfg",).'
            )
        dropped = FixedBlocks(tuple(int(b) for b in feature))
        dropped.check(model.num_blocks)
        result.append(tuple(sorted(dropped.blocks)))
    if not result or len(set(result)) != len(result):
        raise ValueError(
            f"features must name at least one feature, each once, got {result}."
        )
    return tuple(result)


def feature_passes(features: Sequence[Feature], label: Any) -> tuple[Pass, ...]:
    """The conditional pass, then the pass of each feature."""
    weak = (
        Pass(None)
        if isinstance(feature, str)
        else Pass(label, drop=jnp.asarray(feature, jnp.int32))
        for feature in features
    )
    return (Pass(label), *weak)


def feature_name(feature: Feature) -> str:
    """Name of a feature in tables: ``cfg``, ``block 3``, ``blocks 3+5``."""
    if isinstance(feature, str):
        return feature
    plural = "s" if len(feature) > 1 else ""
    return f"block{plural} " + "+".join(str(b) for b in feature)
