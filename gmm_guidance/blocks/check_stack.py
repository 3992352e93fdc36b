"""Check that a network's blocks are exposed correctly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.blocks.evaluate import Pass, evaluate_passes
from gmm_guidance.blocks.shared_prefix import run_blocks
from gmm_guidance.blocks.stack import MEMBERS, is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser


@dataclasses.dataclass(frozen=True)
class StackCheck:
    """The result of ``check_stack``; true if every check passed.

    Attributes:
        checks: for each check its name, whether it passed, and what was measured.
    """

    checks: tuple[tuple[str, bool, str], ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(passed for _, passed, _ in self.checks)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return "\n".join(
            f"{'ok  ' if passed else 'FAIL'} {name}: {text}"
            for name, passed, text in self.checks
        )

    __repr__ = __str__


def check_stack(
    stack: Any,
    reference: Denoiser | None = None,
    *,
    label: Any = None,
    sigma: float = 1.0,
    sample_shape: tuple[int, ...] | None = None,
    tolerance: float = 1e-5,
) -> StackCheck:
    """Check a ``BlockStack`` before it is used with rules that drop blocks.

    The stack is evaluated on three random samples. Checked are, a line each: the
    members; whether all blocks keep the structure, shapes and types of the state;
    whether the output has the shape and type of the samples; whether samples of a
    batch are independent; whether every block is selected correctly by a traced index
    (each single block dropped by the evaluator, against running the other blocks one
    after another); whether every block changes the output; and the full pass against a
    reference implementation. A check that cannot run is a failed check.

    Args:
        stack: the model to check.
        reference: the same network as a plain denoiser, ``reference(x, sigma, label)``.
        label: an integer for all samples, or ``None`` for no condition.
        sigma: noise level, above 0.
        sample_shape: shape of one sample; ``stack.sample_shape`` by default.
        tolerance: largest difference allowed, relative to the largest absolute output.

    Returns:
        The checks, printed as one line each.

    Raises:
        ValueError: if the shape of a sample is not known, or sigma is not above 0.
    """
    shape = sample_shape or getattr(stack, "sample_shape", None)
    if shape is None:
        raise ValueError(
            f"the shape of a sample must be known, but {type(stack).__name__} has no "
            f"sample_shape. Pass sample_shape=(...)."
        )
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}.")
    missing = [name for name in MEMBERS if not hasattr(stack, name)]
    if not is_block_stack(stack):
        return StackCheck((("members", False, f"missing: {', '.join(missing)}"),))
    x = jax.random.normal(jax.random.key(0), (3, *shape)) * (1.0 + sigma)
    level = jnp.float32(sigma)
    labels = None if label is None else jnp.full(3, label, jnp.int32)
    checks = _Checks(stack, reference, x, level, labels, tolerance)
    return StackCheck((("members", True, ", ".join(MEMBERS)), *checks.run()))


class _Failed(Exception):
    """A check that did not pass."""


@dataclasses.dataclass
class _Checks:
    stack: Any
    reference: Any
    x: jax.Array
    sigma: jax.Array
    label: Any
    tolerance: float

    def run(self) -> Iterator[tuple[str, bool, str]]:
        checks: list[tuple[str, Callable[[], str]]] = [
            ("full pass", self._full_pass),
            ("batch", self._batch),
            ("dropped blocks", self._dropped),
            ("effect", self._effect),
        ]
        if self.reference is not None:
            checks.append(("reference", self._reference))
        for name, check in checks:
            try:
                yield name, True, check()
            except Exception as error:  # the user's code may raise anything
                kind = "" if isinstance(error, _Failed) else f"{type(error).__name__}: "
                yield name, False, f"{kind}{error}"
                if name == "full pass":
                    return  # nothing else can run

    def _full_pass(self) -> str:
        self.full = self._evaluate(self.x, self.label)
        if not np.isfinite(self.full).all():
            raise _Failed("the output is not finite")
        return (
            f"{self.stack.num_blocks} blocks, output {self.full.shape} as the samples"
        )

    def _batch(self) -> str:
        label = None if self.label is None else self.label[:1]
        return self._compare(
            self._evaluate(self.x[:1], label),
            self.full[:1],
            "one sample alone and in a batch",
            "samples of a batch must not influence each other",
        )

    def _dropped(self) -> str:
        count = self.stack.num_blocks

        def dropped(x, sigma, index):
            tree = {"weak": Pass(self.label, drop=index[None])}
            return evaluate_passes(self.stack, x, sigma, tree)["weak"]

        def removed(x, sigma, index: int):
            hidden, context = self.stack.embed(x, sigma, self.label)
            for other in range(count):
                if other != index:
                    hidden = self.stack.block(other, hidden, context)
            return self.stack.readout(hidden, context, x, sigma)

        run = jax.jit(dropped)
        self.weak = [
            np.asarray(run(self.x, self.sigma, jnp.int32(i))) for i in range(count)
        ]
        differences = [
            np.abs(weak - np.asarray(removed(self.x, self.sigma, i))).max()
            for i, weak in enumerate(self.weak)
        ]
        worst = int(np.argmax(differences))
        return self._judge(
            float(differences[worst]),
            "each block dropped against the others in turn",
            f"block {worst} differs most; is its index used, and are parameters "
            f"stacked in the order of the blocks?",
        )

    def _effect(self) -> str:
        idle = [i for i, weak in enumerate(self.weak) if (weak == self.full).all()]
        if idle:
            raise _Failed(
                f"dropping blocks {idle} changes nothing. Expected only of an "
                f"untrained network whose blocks begin as the identity"
            )
        return "dropping any block changes the output"

    def _reference(self) -> str:
        expected = np.asarray(self.reference(self.x, self.sigma, self.label))
        if expected.shape != self.full.shape:
            raise _Failed(
                f"the reference returns {expected.shape}, the stack {self.full.shape}"
            )
        return self._compare(
            self.full,
            expected,
            "full pass against the reference",
            "the networks differ",
        )

    def _evaluate(self, x: jax.Array, label: Any) -> np.ndarray:
        run = jax.jit(lambda *point: run_blocks(self.stack, *point))
        return np.asarray(run(x, self.sigma, label))

    def _compare(self, found, expected, what: str, remedy: str) -> str:
        return self._judge(float(np.abs(found - expected).max()), what, remedy)

    def _judge(self, difference: float, what: str, remedy: str) -> str:
        relative = difference / max(float(np.abs(self.full).max()), 1e-30)
        text = f"{what}: {relative:.1e} of the largest output"
        if not relative <= self.tolerance:
            raise _Failed(f"{text}, allowed {self.tolerance:.1e}; {remedy}")
        return text
