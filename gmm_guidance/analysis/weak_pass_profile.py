"""What a dropped block takes away: the directions in which its correction points.

For models whose data distribution is known from samples only. At each noise level, the
correction ``u = D_c - D_weak`` is projected on

- the network's own output, ``D_c - a(sigma) x``: what the network adds to the part of
  the denoised samples that its parameterization takes from the input. Where a dropped
  block takes a fraction kappa of it and nothing else, ``exact.scaled_output_change``
  says what S²-Guidance does;
- the direction of CFG, ``D_c - D_u``: S² along it is more CFG, against it less;
- the learning error ``D* - D_c``. Its inner products follow from data, ``E[(x0 - D_c)
  u]``, since ``x0 - D*`` is orthogonal to every function of ``x``; its size does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

#: The network's own output, CFG's ``D_c - D_u``, and, on a mixture, ``D* - D_c``.
Direction = Literal["output", "cfg", "learning_error"]

_MISSING = {
    "output": "a ProcessStack, whose parameterization is known",
    "cfg": 'the feature "cfg"',
    "learning_error": "a mixture, whose exact denoiser is known",
}


class Projection(NamedTuple):
    """Estimates and standard errors, by the jackknife over groups of samples.

    Attributes:
        value: for each level and correction, ``[S, K]``; or over levels, ``[K]``.
        standard_error: of the same shape.
    """

    value: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeakPassProfile:
    """Projections of ``D_c - D_weak`` over the noise level, by ``Calibration.profile``.

    Attributes:
        sigmas: noise levels, ascending, ``[S]``.
        weights: how much an error at each level matters for a sample, ``[S]``, sum one.
        corrections: names of the corrections, K: one for each measured set of blocks,
            and, for more than one single block, their mean: that of S²-Guidance with
            all masks.
        directions: what they can be projected on.
        products: mean inner products per element, in groups of samples, of the
            corrections, the residual ``x0 - D_c`` and the directions, ``[S, G, Z, Z]``
            with ``Z = K + 1 + len(directions)``.
    """

    sigmas: np.ndarray
    weights: np.ndarray
    corrections: tuple[str, ...]
    directions: tuple[Direction, ...]
    products: np.ndarray

    def fraction(self, direction: Direction) -> Projection:
        """Least-squares fraction of a direction in each correction, ``[S, K]``.

        Of ``"output"``, the fraction of the network's output that the dropped block
        takes away. Of ``"cfg"``, the CFG scale that a unit of S² scale adds.

        Raises:
            ValueError: if the direction was not measured.
        """
        column = self._column(direction)
        return self._jackknife(
            lambda p: p[..., self._own, column] / p[..., column, column, None]
        )

    def cosine(self, direction: Direction) -> Projection:
        """Cosine of each correction with a direction over all samples, ``[S, K]``.

        Raises:
            ValueError: if the direction was not measured.
        """
        column = self._column(direction)

        def cosine(p: np.ndarray) -> np.ndarray:
            size = np.sqrt(self._squares(p) * p[..., column, column, None])
            return p[..., self._own, column] / size

        return self._jackknife(cosine)

    def size(self) -> Projection:
        """Root mean square of each correction per element, ``[S, K]``."""
        return self._jackknife(lambda p: np.sqrt(self._squares(p)))

    def best_weight(self, scale: float = 1.0) -> Projection:
        """The weight of each correction with the least denoising error, ``[S, K]``.

        Positive where the term reduces the error of the guided denoiser, negative where
        it adds to its error: where S² overshoots in the direction in which CFG has
        already overshot.

        Args:
            scale: total CFG scale to which the term is added; 1 = off, where the error
                is the learning error.

        Raises:
            ValueError: for a scale other than 1 without the feature ``"cfg"``.
        """
        return self._jackknife(lambda p: self._gain(p, scale) / self._squares(p))

    def error_change(self, s2_scale: float, scale: float = 1.0) -> Projection:
        """Change of the squared denoising error by each correction, ``[K]``.

        ``E|D + s2_scale u - x0|^2 - E|D - x0|^2`` per element with the guided denoiser
        ``D``, averaged over levels with ``weights``. The errors account for the samples
        that all levels share. For fidelity to ``p(x | label)``: at scales above those
        of ``calibrate``, everything that weakens CFG reduces it.

        Args:
            s2_scale: weight of the correction at all levels.
            scale: total CFG scale to which it is added; 1 = off.

        Raises:
            ValueError: for a scale other than 1 without the feature ``"cfg"``.
        """

        def change(p: np.ndarray) -> np.ndarray:
            each = -2.0 * self._gain(p, scale) + s2_scale * self._squares(p)
            return s2_scale * np.einsum("s,s...k->...k", self.weights, each)

        return self._jackknife(change, over_levels=True)

    def records(self, scale: float = 1.0) -> list[dict[str, float | str]]:
        """A flat record for each level, correction and quantity, for tables and JSON.

        Args:
            scale: total CFG scale, for ``best_weight``.
        """
        quantities = {"size": self.size(), "best_weight": self.best_weight(scale)}
        for direction in self.directions:
            quantities[f"{direction}_fraction"] = self.fraction(direction)
            quantities[f"{direction}_cosine"] = self.cosine(direction)
        return [
            {
                "sigma": float(sigma),
                "correction": name,
                "quantity": quantity,
                "value": float(found.value[level, column]),
                "standard_error": float(found.standard_error[level, column]),
            }
            for quantity, found in quantities.items()
            for column, name in enumerate(self.corrections)
            for level, sigma in enumerate(self.sigmas)
        ]

    # -- internals ------------------------------------------------------------------

    @property
    def _own(self) -> np.ndarray:
        return np.arange(len(self.corrections))

    def _column(self, direction: str) -> int:
        if direction not in self.directions:
            need = _MISSING.get(direction)
            raise ValueError(
                f"direction must be one of those measured, "
                f"{', '.join(self.directions) or 'none'}, got {direction!r}"
                + (f"; calibrate with {need}." if need else ".")
            )
        return len(self.corrections) + 1 + self.directions.index(direction)

    def _squares(self, products: np.ndarray) -> np.ndarray:
        return np.diagonal(products, axis1=-2, axis2=-1)[..., self._own]

    def _gain(self, products: np.ndarray, scale: float) -> np.ndarray:
        """Inner products of corrections and ``x0 - D`` of CFG."""
        gain = products[..., self._own, len(self.corrections)]
        if scale == 1.0:
            return gain
        return gain - (scale - 1.0) * products[..., self._own, self._column("cfg")]

    def _jackknife(
        self, function: Callable[[np.ndarray], np.ndarray], over_levels: bool = False
    ) -> Projection:
        groups = self.products.shape[1]
        axis = 0 if over_levels else 1
        others = (self.products.sum(1, keepdims=True) - self.products) / (groups - 1)
        left_out = function(others)
        spread = left_out.std(axis) * np.sqrt(groups - 1)
        return Projection(function(self.products.mean(1)), spread)
