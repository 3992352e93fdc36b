"""Guidance rules: which passes a step needs, and how their results are combined.

A rule names the passes it needs at a step, as a tree, and combines their results into
one guided denoiser value. It knows neither the network nor the solver. Rules are frozen
dataclasses registered as pytrees: scales are leaves, which may be traced, swept and
vmapped; everything that shapes the program is static.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from gmm_guidance._runtime.checks import shown
from gmm_guidance._runtime.hooks import shapes_of
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.denoiser import Guided, Renoised
from gmm_guidance.guidance.draws import RandomDraws, UndrawnDraws
from gmm_guidance.guidance.scale import Scale, check_scale, known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position

Rule = TypeVar("Rule")


def static_field(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that shapes the program and is not traced: a count, a name, a window."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static_field,))
def guidance_rule(cls: type[Rule]) -> type[Rule]:
    """Class decorator: a frozen dataclass, a pytree of its fields.

    Fields declared with ``static_field`` are static, all others are leaves or subtrees.
    """
    frozen: Any = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(frozen)


class GuidanceRule:
    """Base of all rules: derive, decorate with ``guidance_rule``, define two methods.

    ``passes`` and ``combine`` are the rule. The other four methods have defaults, for
    rules without windows, random draws, state and weak passes.
    """

    traces_numbers = True  # scales are arguments of the program, see _runtime.pytree

    def passes(self, label: Any, draws: Any) -> Any:
        """The evaluations that ``combine`` needs.

        Args:
            label: the condition, ``[n]`` integers or ``None``.
            draws: what ``draw`` returned.

        Returns:
            Any pytree of ``Pass``, a tuple for example; ``()`` for none. Passes without
            dropped blocks and with the same label object are evaluated once.
        """
        raise NotImplementedError(f"{type(self).__name__} must define passes().")

    def combine(
        self, outputs: Any, x: jax.Array, sigma: jax.Array, state: Any
    ) -> tuple[Guided, Any]:
        """The guided denoiser value, and the next state.

        Args:
            outputs: the tree of ``passes`` with denoised samples ``[n, ...]``, float32
                or better, in the places of the passes.
            x: noisy samples ``[n, ...]``.
            sigma: noise level, a scalar.
            state: state from the previous evaluation.

        Returns:
            The guided value ``[n, ...]``, or a ``Renoised`` for solvers that support
            it, and the next state.
        """
        raise NotImplementedError(f"{type(self).__name__} must define combine().")

    def at(self, position: Position) -> GuidanceRule:
        """The rule as it acts at one evaluation: windows and zero weights resolved.

        Called with concrete positions before the program is traced, so that a pass
        whose weight is known to be zero is never part of the program. Coefficients that
        vary smoothly belong in ``combine``, as functions of ``sigma``: each distinct
        result of ``at`` is a program of its own. Ask ``position.is_inside`` for
        windows, which makes a window without evaluations an error.
        """
        return self

    def draw(self, random: RandomDraws) -> Any:
        """The random quantities of one evaluation, a pytree of arrays for ``passes``.

        Args:
            random: where they are drawn from: ``random.dropped_blocks(...)`` for random
                sets of blocks, ``random.key()`` for anything else.
        """
        return ()

    def init(self, x: jax.Array) -> Any:
        """Initial state, carried from evaluation to evaluation: momentum, for example.

        Args:
            x: initial noisy samples ``[n, ...]``.
        """
        return ()

    def without_weak_passes(self) -> GuidanceRule:
        """The rule where weak passes equal the conditional one.

        This is the part that remains with a perfect network: CFG for S²-Guidance, no
        guidance for AutoGuidance.
        """
        return self


class UpdateRule(GuidanceRule):
    """Base of rules ``D_c + (scale - 1) update(D_u, D_c)``. 1 = off, two passes.

    A subclass has a field ``scale`` and defines ``update``.
    """

    scale: Scale

    def __post_init__(self):
        check_scale("scale", self.scale)

    def update(
        self,
        uncond: jax.Array,
        cond: jax.Array,
        x: jax.Array,
        sigma: jax.Array,
        state: Any,
    ) -> tuple[jax.Array, Any]:
        """The update of ``D_c`` at scale 2, and the next state; ``D_c - D_u`` for CFG.

        Args:
            uncond: unconditional denoised samples ``[n, ...]``.
            cond: conditional denoised samples.
            x: noisy samples.
            sigma: noise level, a scalar.
            state: state from the previous evaluation.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update().")

    @override
    def at(self, position: Position) -> GuidanceRule:
        off = known_scale_at(self.scale, position.sigma) == 1.0
        return Unguided() if off else self

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return Pass(None), Pass(label)

    @override
    def combine(self, outputs, x, sigma, state):
        uncond, cond = outputs
        update, state = self.update(uncond, cond, x, sigma, state)
        # Around D_c, to which a traced scale of 1 then leads exactly.
        return cond + (scale_at(self.scale, sigma) - 1.0) * update, state


class RuleWrapper(GuidanceRule):
    """Base of rules that change another rule, their field ``rule``.

    Everything is that of the inner rule: a subclass overrides what it changes. A
    wrapper with passes or draws of its own puts the tree of ``super()`` into its own
    tree, and hands that part back to ``super().combine``.
    """

    rule: GuidanceRule

    @override
    def at(self, position: Position) -> GuidanceRule:
        return dataclasses.replace(self, rule=self.rule.at(position))  # type: ignore[type-var]

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return dataclasses.replace(self, rule=self.rule.without_weak_passes())  # type: ignore[type-var]

    @override
    def draw(self, random: RandomDraws) -> Any:
        return self.rule.draw(random)

    @override
    def init(self, x: jax.Array) -> Any:
        return self.rule.init(x)

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return self.rule.passes(label, draws)

    @override
    def combine(self, outputs, x, sigma, state):
        return run_combine(self.rule, outputs, x, sigma, state)


@guidance_rule
class Unguided(GuidanceRule):
    """The conditional denoiser without guidance: ``D_c``. One pass."""

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return (Pass(label),)

    @override
    def combine(self, outputs, x, sigma, state):
        return outputs[0], state


@guidance_rule
class Unconditional(GuidanceRule):
    """The unconditional denoiser, whatever the label: ``D_u``. One pass."""

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return (Pass(None),)

    @override
    def combine(self, outputs, x, sigma, state):
        return outputs[0], state


def passes_in(tree: Any) -> list[Pass]:
    """The passes of a tree, in order."""
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Pass))


def run_at(rule: GuidanceRule, position: Position) -> GuidanceRule:
    """The rule as it acts at a position.

    Raises:
        TypeError: if ``at`` returns anything else than a rule.
    """
    found = rule.at(position)
    if not isinstance(found, GuidanceRule):
        raise TypeError(
            f"{type(rule).__name__}.at must return a guidance rule, got "
            f"{shown(found)}. Return self where the rule acts, Unguided() where not."
        )
    return found


def run_passes(rule: GuidanceRule, label: Any, draws: Any) -> Any:
    """The passes of a rule.

    Raises:
        TypeError: if ``passes`` returns anything else than a tree of passes.
    """
    tree = rule.passes(label, draws)
    for leaf in [tree] if tree is None else passes_in(tree):
        if not isinstance(leaf, Pass):
            raise TypeError(
                f"{type(rule).__name__}.passes must return a tree of Pass objects, "
                f"such as (Pass(None), Pass(label)), got {shown(leaf)} in it. Return "
                f"() for none."
            )
    return tree


def run_combine(
    rule: GuidanceRule, outputs: Any, x: jax.Array, sigma: jax.Array, state: Any
) -> tuple[Guided, Any]:
    """The guided value and the next state of a rule.

    Raises:
        TypeError: if ``combine`` does not return the two, or another kind of state.
        ValueError: if the value has not the shape of the samples.
    """
    hook = f"{type(rule).__name__}.combine"
    result = rule.combine(outputs, x, sigma, state)
    pair = isinstance(result, tuple) and not isinstance(result, Renoised)
    if not pair or len(result) != 2:
        raise TypeError(
            f"{hook} must return the tuple (guided value, state), got "
            f"{shapes_of(result)}. Return (value, state); a rule without state returns "
            f"the state that it was given."
        )
    guided, new = result
    shapes = (x.shape, (*x.shape[:-1], 2 * x.shape[-1]))
    for value in guided if isinstance(guided, Renoised) else (guided,):
        if jnp.shape(value) not in shapes:
            raise ValueError(
                f"{hook} must return a guided value of the shape of x, {x.shape}, got "
                f"{shapes_of(value)}. Keep the axes of sums, keepdims=True."
            )
    before, after = shapes_of(state), shapes_of(new)
    if before != after:
        raise TypeError(
            f"{hook} must return a state like the one that it was given, {before}, got "
            f"{after}. Return the new state in the shapes and types of init(x)."
        )
    return guided, new


def expected_passes(
    rule: GuidanceRule, num_blocks: int | None, label: Any
) -> list[Pass]:
    """The passes of a rule without drawing: random sets are ``RandomBlocks``.

    Args:
        rule: the rule.
        num_blocks: depth of the model, ``None`` for a model without blocks.
        label: any object; passes with this label are conditional.

    Raises:
        TypeError: if the rule drops blocks of a model without blocks.
        ValueError: if a drop distribution does not fit ``num_blocks``.
    """

    def draw(key):
        zero, index = jnp.uint32(0), jnp.zeros(1, jnp.uint32)
        return rule.draw(UndrawnDraws(key, zero, zero, num_blocks, index))

    return passes_in(run_passes(rule, label, jax.eval_shape(draw, jax.random.key(0))))


def runs_network(rule: GuidanceRule) -> bool:
    """Whether a rule has any pass."""
    try:
        return bool(expected_passes(rule, None, object()))
    except TypeError:  # it drops blocks, so it has
        return True


def needs_label(rule: GuidanceRule, num_blocks: int | None) -> bool:
    """Whether a rule contrasts the label with no label, so that it must have one."""
    label = object()
    passes = expected_passes(rule, num_blocks, label)
    return all(any(p.label is some for p in passes) for some in (label, None))


def full_precision(outputs: Any, x: jax.Array) -> Any:
    """At least float32, and at least the type of the samples ``x``.

    Guidance takes small differences of large numbers; and the state of a sampler keeps
    its type, whatever that of a network.
    """

    def widened(a: jax.Array) -> jax.Array:
        widest = max(a.dtype, x.dtype, key=lambda t: jnp.finfo(t).bits)
        return a.astype(widest if jnp.finfo(widest).bits >= 32 else jnp.float32)

    return jax.tree.map(widened, outputs)


def check_rule(guidance: Any) -> None:
    """Raise unless an argument is a rule whose scales are single numbers or curves.

    Raises:
        TypeError: for anything but a rule.
        ValueError: for an array of scales.
    """
    if not isinstance(guidance, GuidanceRule):
        if isinstance(guidance, type):
            remedy = f"write {guidance.__name__}(...)"
        elif guidance is None:
            remedy = "write Unguided() for none"
        else:
            remedy = "write CFG(2.0) for classifier-free guidance of scale 2"
        raise TypeError(
            f"guidance must be a guidance rule such as CFG(2.0), got "
            f"{shown(guidance)}; {remedy}."
        )
    if not dataclasses.is_dataclass(guidance):
        return
    for field in dataclasses.fields(guidance):
        value = getattr(guidance, field.name)
        if isinstance(value, GuidanceRule):
            check_rule(value)
        elif str(field.type).startswith(("Scale", "Number")) and np.shape(value):
            raise ValueError(
                f"{field.name} of {type(guidance).__name__} must be one number"
                f"{' or a SigmaCurve' if str(field.type).startswith('Scale') else ''}, "
                f"got shape {np.shape(value)}; for several values use jax.vmap, which "
                f"compiles once."
            )
