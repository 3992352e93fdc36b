"""Features of the regression: what a guidance term can push along.

A feature is ``D_c - D_k`` for a pass ``k``: the unconditional one (``"cfg"``), or the
conditional one with a set of blocks left out (a tuple of block indices).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from gmm_guidance.blocks.drop import FixedBlocks, eligible_blocks
from gmm_guidance.blocks.evaluate import Pass, is_block_stack

Feature = str | tuple[int, ...]
CFG_FEATURE = "cfg"


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
        law = FixedBlocks(tuple(int(b) for b in feature))
        law.check(model.num_blocks)
        result.append(tuple(sorted(law.blocks)))
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
    """How a feature is called in tables: ``cfg``, ``block 3``, ``blocks 3+5``."""
    if isinstance(feature, str):
        return feature
    plural = "s" if len(feature) > 1 else ""
    return f"block{plural} " + "+".join(str(b) for b in feature)
