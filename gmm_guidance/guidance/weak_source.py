"""Where the weaker predictions of a rule come from: dropped blocks, another network."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.drop import DropLaw, ExpectedDrop, FixedCount
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.rule import guidance_rule, static

Redraw = Literal["step", "evaluation", "run"]


@guidance_rule
class DroppedBlocks:
    """Weak passes of the guided model itself, with blocks left out.

    Attributes:
        law: which blocks are dropped.
        num_masks: independent draws, or ``"all"`` for each possible set once (the exact
            expectation over masks; ``FixedCount`` only).
        redraw: how long a draw lasts: a ``"step"``, a single ``"evaluation"``, or the
            whole ``"run"``.
        per_sample: a draw for each sample instead of one for the batch. Samples are
            told apart by their global index, so the result does not depend on batches.
    """

    law: DropLaw = static()
    num_masks: int | Literal["all"] = static(default=1)
    redraw: Redraw = static(default="step")
    per_sample: bool = static(default=False)

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """Index sets of the dropped blocks, one ``[k]`` or ``[n, k]`` for each mask."""
        if num_blocks is None:
            raise TypeError(
                "this guidance rule drops blocks, but the denoiser has none: it is no "
                "BlockStack (num_blocks, embed, block, readout). Use a rule that drops "
                "none (CFG, AutoGuidance), or give the model these methods."
            )
        self.law.check(num_blocks)
        if self.num_masks == "all":
            if not isinstance(self.law, FixedCount):
                raise ValueError(
                    f'num_masks="all" enumerates the sets of FixedCount, got '
                    f"{type(self.law).__name__}; give a number of masks instead."
                )
            return tuple(jnp.asarray(m) for m in self.law.all_masks(num_blocks))
        if self.redraw != "run":
            key = jax.random.fold_in(key, step)
        if self.redraw == "evaluation":
            key = jax.random.fold_in(key, evaluation)

        def draw_one(mask_key):
            if not self.per_sample:
                return self.law.draw(mask_key, num_blocks)
            keys = jax.vmap(lambda i: jax.random.fold_in(mask_key, i))(sample_index)
            return jax.vmap(lambda k: self.law.draw(k, num_blocks))(keys)

        # Together: drawn one by one, many masks would take long to compile.
        masks = jnp.arange(self.num_masks)
        drawn = jax.vmap(lambda mask: draw_one(jax.random.fold_in(key, mask)))(masks)
        return tuple(drawn[mask] for mask in range(self.num_masks))

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """One conditional pass for each mask."""
        return tuple(Pass(label, drop=drop) for drop in draws)

    def num_passes(self) -> int | None:
        """Number of weak passes, ``None`` where it depends on the depth."""
        return None if self.num_masks == "all" else self.num_masks

    def expected_draws(self, num_blocks: int | None) -> Any:
        """One ``ExpectedDrop`` for each mask."""
        if num_blocks is None:
            return (ExpectedDrop(0.0, 0.0, True),) * (self.num_passes() or 1)
        self.law.check(num_blocks)
        count = self.num_passes()
        if count is None:
            count = len(self.law.all_masks(num_blocks))  # type: ignore[attr-defined]
        depths = self.law.expected_depths(num_blocks)
        return (ExpectedDrop(*depths, self.per_sample),) * count


@guidance_rule
class OtherModel:
    """A weak pass of another, worse denoiser (a pytree leaf or subtree of the rule)."""

    model: Any

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """Nothing is random."""
        return ()

    def expected_draws(self, num_blocks: int | None) -> Any:
        """Nothing is random."""
        return ()

    def num_passes(self) -> int:
        """One."""
        return 1

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """One conditional pass of the other model."""
        return (Pass(label, model=self.model),)
