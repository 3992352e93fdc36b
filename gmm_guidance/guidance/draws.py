"""Random quantities of a guidance rule: what ``GuidanceRule.draw`` may draw from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from typing_extensions import override

from gmm_guidance.blocks.drop import DropDistribution, FixedCount

#: How long a draw lasts: a step, a single evaluation, or the whole run.
Redraw = Literal["step", "evaluation", "run"]


class RandomDraws:
    """Source of everything random in one evaluation of a rule.

    Each call of a method is an independent draw. Draws depend on the key of the run,
    the step and the evaluation, never on the batch; draws per sample also depend on the
    global index of the sample.

    Attributes:
        num_blocks: depth of the guided model, ``None`` for a model without blocks.
        sample_index: global index of each sample, ``[n]``.
    """

    def __init__(
        self,
        key: jax.Array,
        step: jax.Array,
        evaluation: jax.Array,
        num_blocks: int | None,
        sample_index: jax.Array,
    ):
        self.num_blocks = num_blocks
        self.sample_index = sample_index
        self._key, self._step, self._evaluation = key, step, evaluation
        self._drawn = 0

    def key(self, redraw: Redraw = "step") -> jax.Array:
        """A JAX random key that lasts as long as ``redraw`` says."""
        key = self._key
        if self._drawn:
            key = jax.random.fold_in(key, self._drawn)
        self._drawn += 1
        if redraw != "run":
            key = jax.random.fold_in(key, self._step)
        return (
            jax.random.fold_in(key, self._evaluation) if redraw == "evaluation" else key
        )

    def dropped_blocks(
        self,
        distribution: DropDistribution,
        num_masks: int | Literal["all"] = 1,
        redraw: Redraw = "step",
        per_sample: bool = False,
    ) -> tuple[Any, ...]:
        """Random sets of blocks to drop, for ``Pass.drop``.

        Args:
            distribution: distribution of the sets.
            num_masks: number of independent sets, or ``"all"`` for each possible set
                once (``FixedCount`` only).
            redraw: how long the sets last.
            per_sample: a set for each sample instead of one for the batch.

        Returns:
            ``num_masks`` arrays of block indices, ``[k]`` or ``[n, k]``.

        Raises:
            TypeError: if the guided model has no blocks.
            ValueError: if the distribution does not fit the depth of the model, or if
                it cannot be enumerated.
        """
        depth = self._check(distribution, num_masks)
        if num_masks == "all":
            sets = distribution.all_masks(depth)  # type: ignore[attr-defined]
            self._drawn += len(sets)
            return tuple(jnp.asarray(blocks) for blocks in sets)
        key = self.key(redraw)
        self._drawn += num_masks - 1

        def draw_one(mask_key):
            if not per_sample:
                return distribution.draw(mask_key, depth)
            keys = jax.vmap(lambda i: jax.random.fold_in(mask_key, i))(
                self.sample_index
            )
            return jax.vmap(lambda k: distribution.draw(k, depth))(keys)

        # Together: drawn one by one, many masks would take long to compile.
        drawn = jax.vmap(lambda mask: draw_one(jax.random.fold_in(key, mask)))(
            jnp.arange(num_masks)
        )
        return tuple(drawn[mask] for mask in range(num_masks))

    def _check(
        self, distribution: DropDistribution, num_masks: int | Literal["all"]
    ) -> int:
        if self.num_blocks is None:
            raise TypeError(
                "this guidance rule drops blocks, but the denoiser has none: it is not "
                "a BlockStack (num_blocks, embed, block, readout). Use a rule that "
                "drops none (CFG, AutoGuidance), or give the model these methods."
            )
        distribution.check(self.num_blocks)
        if num_masks == "all" and not isinstance(distribution, FixedCount):
            raise ValueError(
                f'num_masks="all" enumerates the sets of FixedCount, got '
                f"{type(distribution).__name__}; give a number of masks instead."
            )
        return self.num_blocks


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RandomBlocks:
    """A random set of dropped blocks that is not drawn, as ``Pass.drop``.

    Attributes:
        distribution: distribution of the set.
        per_sample: whether each sample has its own set.
    """

    distribution: DropDistribution
    per_sample: bool


class UndrawnDraws(RandomDraws):
    """Draws that are not made: a ``RandomBlocks`` for each random set of blocks."""

    @override
    def dropped_blocks(
        self,
        distribution: DropDistribution,
        num_masks: int | Literal["all"] = 1,
        redraw: Redraw = "step",
        per_sample: bool = False,
    ) -> tuple[Any, ...]:
        depth = self._check(distribution, num_masks)
        if num_masks == "all":
            num_masks = len(distribution.all_masks(depth))  # type: ignore[attr-defined]
        return (RandomBlocks(distribution, per_sample),) * num_masks
