"""Guidance of some channels alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.renoised import Renoised
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.windows import Position


@guidance_rule
class GuidedChannels(GuidanceRule):
    """A rule for the first channels; the others are those of ``D_c``.

    The published samples of DiT and SiT are guided in three of four latent channels, a
    left-over of code for RGB images; their FIDs are of that rule. And a learned
    variance, in further channels of the output, is never guided. Costs no pass where
    the rule asks for the conditional one.

    Args:
        rule: any rule.
        num_channels: how many of the last axis it acts on, at least 1.

    Raises:
        ValueError: for fewer than one channel; and, when a sampler runs it, for more
            than the sample has.
    """

    rule: GuidanceRule
    num_channels: int = static(default=3)

    def __post_init__(self):
        if self.num_channels < 1:
            raise ValueError(
                f"num_channels must be at least 1, got {self.num_channels}."
            )

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """As the rule."""
        return self.rule.needs_label

    def without_weak_passes(self) -> GuidanceRule:
        """The rule without its own, on the same channels."""
        return dataclasses.replace(self, rule=self.rule.without_weak_passes())

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the rule is."""
        rule = self.rule.at(position)
        if isinstance(rule, Unguided):
            return rule
        return dataclasses.replace(self, rule=rule)

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """As the rule."""
        return self.rule.draw(key, step, evaluation, num_blocks, sample_index)

    def expected_draws(self, num_blocks: int | None) -> Any:
        """As the rule."""
        return self.rule.expected_draws(num_blocks)

    def num_passes(self) -> int | None:
        """The conditional one, and those of the rule."""
        count = self.rule.num_passes()
        return None if count is None else 1 + count

    def init(self, x: jax.Array) -> Any:
        """As the rule, of the guided channels."""
        return self.rule.init(self._guided(x))

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Conditional, and those of the rule."""
        return (Pass(label), *self.rule.passes(label, draws))

    def combine(self, outputs, x, sigma, state):
        """The rule on the first channels, ``D_c`` on the others."""
        rest = outputs[0][..., self.num_channels :]
        guided, state = self.rule.combine(
            self._guided(outputs[1:]), self._guided(x), sigma, state
        )
        if isinstance(guided, Renoised):
            return Renoised(*(_join(part, rest) for part in guided)), state
        return _join(guided, rest), state

    def _guided(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] < self.num_channels:
            raise ValueError(
                f"num_channels must be at most the sample's {x.shape[-1]} channels, "
                f"got {self.num_channels}."
            )
        return x[..., : self.num_channels]


def _join(guided: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([guided, rest], axis=-1)
