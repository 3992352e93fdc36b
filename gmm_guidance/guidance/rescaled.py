"""Rescaled guidance: the standard deviation of the result pulled back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.per_sample import ratio, std
from gmm_guidance.guidance.renoised import map_denoised
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position


@guidance_rule
class Rescaled(GuidanceRule):
    """A rule whose result is pulled back to the spread of ``D_c``. 0 = off.

    ``factor D std(D_c) / std(D) + (1 - factor) D``, with ``D`` the result of the rule
    and standard deviations over all axes of each sample: Lin et al. 2023 (arXiv
    2305.08891, Sec. 3.4), who take 0.7. It is not affine and is defined on ``D``: in
    noise or velocity it would be another rule. It asks for ``D_c``, which costs nothing
    where the rule does so too. Where the rule runs no network nothing is rescaled.

    Args:
        rule: any rule.
        factor: share of the rescaled result, in [0, 1]; 0 = off.

    Raises:
        ValueError: if the factor is outside ``[0, 1]``; and, when a sampler runs it, if
            a sample is a single number, which has no standard deviation.
    """

    rule: GuidanceRule
    factor: Scale = 0.7

    def __post_init__(self):
        check_scale("factor", self.factor, low=0.0, high=1.0)

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """As the rule."""
        return self.rule.needs_label

    def without_weak_passes(self) -> GuidanceRule:
        """The rule without its own, rescaled."""
        return dataclasses.replace(self, rule=self.rule.without_weak_passes())

    def at(self, position: Position) -> GuidanceRule:
        """The rule alone where there is nothing to rescale."""
        rule = self.rule.at(position)
        if known_scale_at(self.factor, position.sigma) == 0.0:
            return rule
        if isinstance(rule, Unguided) or rule.num_passes() == 0:
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
        """As the rule."""
        return self.rule.init(x)

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """The conditional one, and those of the rule."""
        return (Pass(label), *self.rule.passes(label, draws))

    def combine(self, outputs, x, sigma, state):
        """Written around the rule's own result, for the off value and equal spreads."""
        if math.prod(x.shape[1:]) < 2:
            raise ValueError(
                f"Rescaled needs samples of at least two numbers, whose standard "
                f"deviation it compares, got samples of shape {x.shape[1:]}; leave it "
                f"out in one dimension."
            )
        guided, state = self.rule.combine(outputs[1:], x, sigma, state)
        wanted, factor = std(outputs[0]), scale_at(self.factor, sigma)

        def rescale(denoised):
            return denoised * (1.0 + factor * (ratio(wanted, std(denoised), 1.0) - 1.0))

        return map_denoised(rescale, guided), state
