"""What ``guided_sample`` records along a run besides its samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.denoiser import Guided, Renoised
from gmm_guidance.guidance.draws import RandomBlocks
from gmm_guidance.guidance.rule import GuidanceRule, expected_passes, passes_in

#: What can be recorded; see ``guided_sample``.
Recordable = Literal["denoised", "update_norm", "masks"]


class Sampled(NamedTuple):
    """The result of ``guided_sample(..., record=...)``.

    Attributes:
        samples: ``[n, ...]``.
        trajectory: the state at each noise level, ``[steps + 1, n, ...]``, if asked
            for.
        sigmas: the noise levels, ``[steps + 1]``.
        recorded: by name, one entry for each step, of its first evaluation:
            ``"denoised"``, the guided denoised samples ``[steps, n, ...]``;
            ``"update_norm"``, the root mean square over a sample of what guidance adds
            to the conditional denoised value, ``[steps, n]``; ``"masks"``, the blocks
            that each weak pass drops or perturbs, booleans ``[steps, passes,
            num_blocks]``, or ``[steps, n, passes, num_blocks]`` for masks per sample.
    """

    samples: jax.Array
    trajectory: jax.Array | None
    sigmas: jax.Array
    recorded: dict[str, jax.Array]


def as_recordables(record: Any) -> tuple[Recordable, ...]:
    """Names of what is recorded, checked.

    Raises:
        ValueError: for unknown names.
    """
    names = (record,) if isinstance(record, str) else tuple(record)
    known = get_args(Recordable)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"record must contain names of {', '.join(known)}, got {unknown}; for the "
            f"states write trajectory=True."
        )
    return tuple(dict.fromkeys(names))


class Masks(NamedTuple):
    """The size of the recorded masks.

    Attributes:
        num_passes: weak passes of one evaluation, the most of all rules of the run.
        num_blocks: depth of the model.
        per_sample: whether each sample has masks of its own.
    """

    num_passes: int
    num_blocks: int
    per_sample: bool

    @classmethod
    def of_rules(
        cls, rules: Iterable[GuidanceRule], num_blocks: int | None, label: Any
    ) -> Masks:
        """The masks of all rules of a run.

        Raises:
            ValueError: if no rule has weak passes of the guided model.
        """
        weak = [_weak(expected_passes(rule, num_blocks, label)) for rule in rules]
        count = max(map(len, weak), default=0)
        if not count or num_blocks is None:
            raise ValueError(
                "record='masks' needs a rule with weak passes of the guided model, "
                "such as S2Guidance, and this one has none; leave 'masks' out."
            )
        blocks = [p.perturbation.blocks for passes in weak for p in passes]  # type: ignore[union-attr]
        per_sample = any(
            b.per_sample if isinstance(b, RandomBlocks) else len(b.shape) == 2
            for b in blocks
        )
        return cls(count, num_blocks, per_sample)


class Recorder(NamedTuple):
    """Records an evaluation.

    Attributes:
        names: what is recorded.
        masks: the size of the masks, if these are recorded.
    """

    names: tuple[Recordable, ...]
    masks: Masks | None

    @property
    def shared_names(self) -> tuple[str, ...]:
        """What is recorded once for all samples."""
        shared = self.masks is not None and not self.masks.per_sample
        return ("masks",) if shared else ()

    def blank(self, x: jax.Array) -> dict[str, jax.Array]:
        """The record before the first evaluation of a step."""
        found: dict[str, jax.Array] = {}
        if "denoised" in self.names:
            found["denoised"] = jnp.zeros_like(x)
        if "update_norm" in self.names:
            found["update_norm"] = jnp.zeros(x.shape[:1], x.dtype)
        if self.masks is not None:
            samples = x.shape[:1] if self.masks.per_sample else ()
            shape = (*samples, self.masks.num_passes, self.masks.num_blocks)
            found["masks"] = jnp.zeros(shape, bool)
        return found

    def __call__(
        self, x: jax.Array, label: Any, passes: Any, outputs: Any, guided: Guided
    ) -> dict[str, jax.Array]:
        """The record of one evaluation: a tree of passes, its outputs and their mix."""
        value = guided.denoised if isinstance(guided, Renoised) else guided
        value = _samples_of(value, x)
        found: dict[str, jax.Array] = {}
        if "denoised" in self.names:
            found["denoised"] = value
        if "update_norm" in self.names:
            cond = _samples_of(_conditional(passes, outputs, label), x)
            square = ((value - cond) ** 2).reshape(len(x), -1)
            found["update_norm"] = jnp.sqrt(square.mean(axis=1))
        if self.masks is not None:
            found["masks"] = self._chosen(_weak(passes_in(passes)), len(x))
        return found

    def _chosen(self, weak: list[Pass], num_samples: int) -> jax.Array:
        assert self.masks is not None
        count, num_blocks, per_sample = self.masks
        rows = []
        for p in weak:
            blocks = jnp.asarray(p.perturbation.blocks)  # type: ignore[union-attr]
            row = jnp.any(jax.nn.one_hot(blocks, num_blocks, dtype=bool), axis=-2)
            if per_sample and row.ndim == 1:
                row = jnp.tile(row, (num_samples, 1))
            rows.append(row)
        shape = (num_samples,) * per_sample + (num_blocks,)
        rows += [jnp.zeros(shape, bool)] * (count - len(rows))
        return jnp.stack(rows, axis=-2)


def _weak(passes: list[Pass]) -> list[Pass]:
    """The passes that perturb blocks of the guided model."""
    return [p for p in passes if p.perturbation is not None and p.model is None]


def _samples_of(value: jax.Array, x: jax.Array) -> jax.Array:
    """Without the channels of a learned variance, in the type of the samples."""
    return value[..., : x.shape[-1]].astype(x.dtype)


def _conditional(passes: Any, outputs: Any, label: Any) -> jax.Array:
    leaves, structure = jax.tree.flatten(passes, lambda leaf: isinstance(leaf, Pass))
    tree: Any = structure
    for p, value in zip(leaves, tree.flatten_up_to(outputs), strict=True):
        if p.label is label and p.model is None and p.perturbation is None:
            return value
    raise ValueError(
        "record='update_norm' compares with the conditional pass of the guided model, "
        "which this rule does not have; record 'denoised' instead."
    )
