"""What a calibration found: coefficients, ranking, Pareto front, rules."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gmm_guidance._runtime.files import write_text
from gmm_guidance.analysis.regression import Fit, cross_validated_gain, fit, gain
from gmm_guidance.guidance import S2Guidance
from gmm_guidance.guidance.calibrated import (
    CFG_FEATURE,
    CalibratedGuidance,
    Feature,
    feature_name,
)
from gmm_guidance.guidance.scale import SigmaCurve

_KIND = "gmm_guidance.Calibration"
_MOST_SUBSETS = 5000  # tried exhaustively; beyond, features are added one by one

Target = Literal["data", "exact"]


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
    """The best features for a number of passes.

    Attributes:
        passes: passes per evaluation, the conditional one included.
        cost: the same with shared prefixes: what they cost in full passes, where all
            are active.
        features: the features, in the order of ``Calibration.features``.
        fit: their coefficients at each level and what these remove.
        worth: the held-out error removed, averaged over levels with the weights of
            ``Calibration.weights``.
        worth_error: its standard error.
        idle_sigmas: levels at which no extra pass is needed.
    """

    passes: int
    cost: float
    features: tuple[Feature, ...]
    fit: Fit
    worth: float
    worth_error: float
    idle_sigmas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measured moments of guidance features at each noise level; made by ``calibrate``.

    Everything else is derived from the moments without running the model again.

    Attributes:
        features: what was measured.
        sigmas: noise levels, ascending, ``[S]``.
        products: mean inner products per element in groups of samples, ``[S, G, Z,
            Z]``: features, residual ``x0 - D_c``, and, with a mixture, the error
            ``D* - D_c``.
        data_variance: mean square of the data about its mean, per element.
        num_samples: samples at each level.
        num_blocks: depth of the model, 0 without blocks.
        gate: standard errors that a cross-validated gain must exceed.
    """

    features: tuple[Feature, ...]
    sigmas: np.ndarray
    products: np.ndarray
    data_variance: float
    num_samples: int
    num_blocks: int
    gate: float = 3.0

    # -- what was measured ----------------------------------------------------------

    @property
    def has_truth(self) -> bool:
        """Whether the exact denoiser was known: calibrated on a mixture."""
        return self.products.shape[-1] == len(self.features) + 2

    @property
    def held_out(self) -> int:
        """Number of groups, the last ones, that are held out."""
        return max(2, self.products.shape[1] // 4)

    @property
    def error(self) -> np.ndarray:
        """Squared error ``|D* - D_c|^2`` per element on held-out groups, ``[S]``.

        NaN without a mixture: data alone do not tell how much of ``|x0 - D_c|^2`` is
        error.
        """
        if not self.has_truth:
            return np.full(len(self.sigmas), math.nan)
        return self.products[:, -self.held_out :, -1, -1].mean(1)

    @property
    def weights(self) -> np.ndarray:
        """How much an error at each level matters for a sample, ``[S]``, sum one.

        An error ``delta`` of the denoiser over ``d log sigma`` moves the state by
        ``delta d log sigma``, of which the later flow keeps ``c / sqrt(c^2 + sigma^2)``
        for Gaussian data of standard deviation ``c``.
        """
        weights = self.data_variance / (self.data_variance + self.sigmas**2)
        if len(self.sigmas) > 1:
            weights = weights * np.gradient(np.log(self.sigmas))
        return weights / weights.sum()

    def total_error(self, target: Target = "data") -> float:
        """Squared error of the plain conditional prediction: of what gains are shares.

        Like them it is per element, a mean over held-out groups, and weighted over
        levels: ``worth / total_error()`` is the share that ``ranking`` or ``pareto``
        removes.

        Args:
            target: ``"data"``, all of ``|x0 - D_c|^2``, of which most is noise that no
                denoiser can remove: the share of it that is removed is a small number
                even where guidance mends all that can be mended. ``"exact"``, the error
                ``|D* - D_c|^2`` alone, with a mixture only.

        Raises:
            ValueError: for ``"exact"`` without a mixture.
        """
        side = self._side(target)
        return float(
            self.weights @ self.products[:, -self.held_out :, side, side].mean(1)
        )

    # -- fits -----------------------------------------------------------------------

    def fit(
        self, features: tuple[Feature, ...] | None = None, target: Target = "data"
    ) -> Fit:
        """Coefficients of some of the features; of all by default.

        Args:
            features: which, of those measured.
            target: ``"data"``, the residual of noised data; or ``"exact"``, the
                closed-form error, with a mixture only.

        Raises:
            ValueError: for a feature that was not measured, or ``"exact"`` without a
                mixture.
        """
        columns = self._columns(self.features if features is None else features)
        return fit(*self._problem(columns, target), self.held_out, self.gate)

    def fit_random_block(self, with_cfg: bool = True, target: Target = "data") -> Fit:
        """Coefficients of CFG (if asked for) and of one random block, S²-Guidance.

        The block is drawn anew at each evaluation, uniformly from the measured single
        blocks, so that its moments are means over blocks. The last column is omega.

        Raises:
            ValueError: if no single block, or with ``with_cfg`` no CFG, was measured.
        """
        blocks = self._single_blocks()
        matrix, vector = self._problem(self._columns(self.features), target)
        own = np.array([self.features.index(b) for b in blocks])
        power = np.diagonal(matrix, axis1=2, axis2=3)[..., own].mean(-1)
        random_vector = vector[..., own].mean(-1)
        if not with_cfg:
            matrix, vector = power[..., None, None], random_vector[..., None]
            return fit(matrix, vector, self.held_out, self.gate)
        (cfg,) = self._columns((CFG_FEATURE,))
        cross = matrix[..., cfg, own].mean(-1)
        joint = np.stack(
            [
                np.stack([matrix[..., cfg, cfg], cross], -1),
                np.stack([cross, power], -1),
            ],
            -1,
        )
        joint_vector = np.stack([vector[..., cfg], random_vector], -1)
        return fit(joint, joint_vector, self.held_out, self.gate)

    def removed(
        self,
        coefficients: np.ndarray,
        features: tuple[Feature, ...],
        target: Target = "data",
    ) -> tuple[np.ndarray, np.ndarray]:
        """What given coefficients remove of the squared error on held-out groups.

        Args:
            coefficients: ``[S, k]``.
            features: what the columns belong to.
            target: ``"data"``, as it can be known without the truth; or ``"exact"``,
                what was really removed, with a mixture only.

        Returns:
            Error removed per element and its standard error over held-out groups,
            ``[S]`` each.

        Raises:
            ValueError: as ``fit``.
        """
        matrix, vector = self._problem(self._columns(features), target)
        own = slice(-self.held_out, None)
        gains = gain(matrix[:, own], vector[:, own], coefficients[:, None])
        return gains.mean(1), gains.std(1, ddof=1) / math.sqrt(self.held_out)

    def ranking(self) -> list[tuple[Feature, float, float]]:
        """Each feature alone: what it removes (weighted) and its standard error."""
        rows = []
        for feature in self.features:
            worth, error = self._worth((feature,))
            rows.append((feature, worth, error))
        return sorted(rows, key=lambda row: -row[1])

    def pareto(self, max_passes: int | None = None) -> list[ParetoPoint]:
        """The best features for each number of passes, from one pass up.

        Features are chosen by cross-validation on the groups that are not held out,
        among all subsets where these are few, else by adding the best to the last.

        Args:
            max_passes: most passes per evaluation, at least 1; by default one more
                than there are features.

        Raises:
            ValueError: if ``max_passes`` is below 1.
        """
        most = len(self.features)
        if max_passes is not None:
            if max_passes < 1:
                raise ValueError(f"max_passes must be at least 1, got {max_passes}.")
            most = min(most, max_passes - 1)
        points = [self._point(())]
        chosen: tuple[int, ...] = ()
        for size in range(1, most + 1):
            chosen = self._best_subset(size, chosen)
            points.append(self._point(chosen))
        return points

    # -- rules ----------------------------------------------------------------------

    def rule(
        self,
        max_passes: int | None = None,
        features: tuple[Feature, ...] | None = None,
    ) -> CalibratedGuidance:
        """The calibrated rule for ``guided_sample``.

        Args:
            max_passes: most passes per evaluation; the best features are chosen.
            features: the features to use, in place of a number of passes.

        Raises:
            ValueError: if both are given, or as ``pareto`` and ``fit``.
        """
        if features is not None and max_passes is not None:
            raise ValueError("give max_passes or features, not both.")
        if features is None:
            features = self.pareto(max_passes)[-1].features if max_passes else None
        if features is None:
            features = self.features
        coefficients = (
            self.fit(features).coefficients
            if features
            else np.zeros((len(self.sigmas), 0))
        )
        return CalibratedGuidance(self.sigmas, coefficients, tuple(features))

    def s2_rule(self, with_cfg: bool = True, **options: Any) -> S2Guidance:
        """Plain S²-Guidance with measured ``scale(sigma)`` and ``omega(sigma)``.

        Args:
            with_cfg: whether to calibrate CFG too; otherwise it is off.
            options: further options of ``S2Guidance``. The window is open by default,
                since the coefficients say where the term acts.
        """
        found = self.fit_random_block(with_cfg)
        omega = SigmaCurve(self.sigmas, found.coefficients[:, -1])
        scale: Any = 1.0
        if with_cfg:
            scale = SigmaCurve(self.sigmas, 1.0 + found.coefficients[:, 0])
        blocks = {b[0] for b in self._single_blocks()}
        protected = tuple(b for b in range(self.num_blocks) if b not in blocks)
        return S2Guidance(
            scale, omega, **{"protected": protected, "window": None, **options}
        )

    # -- files ----------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to one JSON file; returns its path."""
        text = json.dumps(
            {
                "kind": _KIND,
                "features": [
                    f if isinstance(f, str) else list(f) for f in self.features
                ],
                "sigmas": self.sigmas.tolist(),
                "products": self.products.tolist(),
                "data_variance": self.data_variance,
                "num_samples": self.num_samples,
                "num_blocks": self.num_blocks,
                "gate": self.gate,
            }
        )
        return write_text(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Calibration:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or something else.
        """
        path = Path(path)
        try:
            found = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no JSON file ({error}).") from error
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise ValueError(f"{path} is no saved Calibration.")
        return cls(
            features=tuple(
                f if isinstance(f, str) else tuple(f) for f in found["features"]
            ),
            sigmas=np.array(found["sigmas"]),
            products=np.array(found["products"]),
            data_variance=found["data_variance"],
            num_samples=found["num_samples"],
            num_blocks=found["num_blocks"],
            gate=found["gate"],
        )

    # -- internals ------------------------------------------------------------------

    def _columns(self, features: tuple[Feature, ...]) -> np.ndarray:
        unknown = [f for f in features if f not in self.features]
        if unknown:
            known = ", ".join(feature_name(f) for f in self.features)
            raise ValueError(
                f"features must be among those measured ({known}), got {unknown}."
            )
        return np.array([self.features.index(f) for f in features], int)

    def _problem(
        self, columns: np.ndarray, target: Target = "data"
    ) -> tuple[np.ndarray, np.ndarray]:
        side = self._side(target)
        matrix = self.products[..., columns[:, None], columns]
        return matrix, self.products[..., columns, side]

    def _side(self, target: Target) -> int:
        """Where in the products the error is that features are to remove."""
        if target not in ("data", "exact"):
            raise ValueError(f"target must be 'data' or 'exact', got {target!r}.")
        if target == "exact" and not self.has_truth:
            raise ValueError(
                "target='exact' needs the closed form: calibrate on a mixture."
            )
        return len(self.features) + (target == "exact")

    def _single_blocks(self) -> list[Feature]:
        blocks: list[Feature] = [
            f for f in self.features if not isinstance(f, str) and len(f) == 1
        ]
        if not blocks:
            raise ValueError(
                "no single block was measured; calibrate with features such as (1,)."
            )
        return blocks

    def _worth(self, features: tuple[Feature, ...]) -> tuple[float, float]:
        if not features:
            return 0.0, 0.0
        found = self.fit(features)
        # The levels share their samples: their errors may all have the same sign.
        worth = self.weights @ found.removed
        return float(worth), float(self.weights @ found.removed_error)

    def _best_subset(self, size: int, smaller: tuple[int, ...]) -> tuple[int, ...]:
        count = len(self.features)
        if math.comb(count, size) <= _MOST_SUBSETS:
            subsets = list(itertools.combinations(range(count), size))
        else:
            rest = [k for k in range(count) if k not in smaller]
            subsets = [tuple(sorted((*smaller, k))) for k in rest]
        worth = []
        for some in _chunks(subsets, 256):
            matrix, vector = zip(
                *(self._problem(np.array(s, int)) for s in some), strict=True
            )
            gains = cross_validated_gain(
                np.stack(matrix), np.stack(vector), self.held_out
            )
            worth.append(gains.clip(min=0.0) @ self.weights)
        return subsets[int(np.concatenate(worth).argmax())]

    def _point(self, columns: tuple[int, ...]) -> ParetoPoint:
        features = tuple(self.features[k] for k in columns)
        if features:
            found = self.fit(features)
        else:
            none, zero = np.zeros((len(self.sigmas), 0)), np.zeros(len(self.sigmas))
            found = Fit(none, none, none, zero, zero.astype(bool), zero, zero)
        worth, error = self._worth(features)
        cost = 1.0 + sum(self._cost(f) for f in features)
        idle = tuple(float(s) for s in self.sigmas[~found.active])
        return ParetoPoint(1 + len(features), cost, features, found, worth, error, idle)

    def _cost(self, feature: Feature) -> float:
        if isinstance(feature, str):
            return 1.0
        return (self.num_blocks - feature[0] - len(feature)) / self.num_blocks


def _chunks(items: list, size: int):
    return (items[i : i + size] for i in range(0, len(items), size))
