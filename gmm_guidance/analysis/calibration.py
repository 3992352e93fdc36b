"""The result of a calibration: coefficients, ranking, Pareto front, rules."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.files import write_text
from gmm_guidance._runtime.schema import Object, read_json, sealed, unsealed
from gmm_guidance.analysis.regression import Fit, best_subset, fit, gain
from gmm_guidance.analysis.weak_pass_profile import Direction, WeakPassProfile
from gmm_guidance.guidance import S2Guidance
from gmm_guidance.guidance.calibrated import (
    CFG_FEATURE,
    CalibratedGuidance,
    Feature,
    feature_name,
)
from gmm_guidance.guidance.scale import SigmaCurve

_KIND = "gmm_guidance.Calibration"

Target = Literal["data", "exact"]


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
    """The best features for a number of passes.

    Attributes:
        features: the features, in the order of ``Calibration.features``.
        fit: coefficients at each level and the error that they remove.
        worth: held-out error removed, averaged over levels with the weights of
            ``Calibration.weights``.
        worth_error: standard error of ``worth``.
        cost: cost of an evaluation in full passes, prefixes shared, where all features
            are active.
        idle_sigmas: noise levels at which no extra pass is needed.
    """

    features: tuple[Feature, ...]
    fit: Fit
    worth: float
    worth_error: float
    cost: float
    idle_sigmas: tuple[float, ...]

    @property
    def passes(self) -> int:
        """Passes per evaluation, including the conditional one."""
        return 1 + len(self.features)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measured moments of guidance features at each noise level; made by ``calibrate``.

    Everything else is derived from the moments without running the model again.

    Attributes:
        features: the measured features.
        sigmas: noise levels, ascending, ``[S]``.
        products: mean inner products per element in groups of samples, ``[S, G, Z,
            Z]``: features, residual ``x0 - D_c``, and, with a mixture, the error
            ``D* - D_c``.
        output_products: those of the network's own output with the same and with
            itself, ``[S, G, Z + 1]``; ``None`` for a model whose parameterization is
            not known, because it is not a ``ProcessStack``.
        data_variance: mean square of the data about its mean, per element.
        num_samples: samples at each level.
        block_costs: fraction of a pass that each block of the model costs,
            ``[num_blocks]``; empty for a model without blocks.
        gate: standard errors that a cross-validated gain must exceed.
    """

    features: tuple[Feature, ...]
    sigmas: np.ndarray
    products: np.ndarray
    output_products: np.ndarray | None
    data_variance: float
    num_samples: int
    block_costs: np.ndarray
    gate: float = 3.0

    # -- measured errors ------------------------------------------------------------

    @property
    def has_truth(self) -> bool:
        """Whether the exact denoiser was known, i.e. the data were a mixture."""
        return self.products.shape[-1] == len(self.features) + 2

    @property
    def held_out(self) -> int:
        """Number of held-out groups, which are the last ones."""
        return max(2, self.products.shape[1] // 4)

    @property
    def error(self) -> np.ndarray:
        """Squared error ``|D* - D_c|^2`` per element on held-out groups, ``[S]``.

        NaN without a mixture: from data alone the error in ``|x0 - D_c|^2`` cannot be
        told from its noise.
        """
        if not self.has_truth:
            return np.full(len(self.sigmas), math.nan)
        return self._square("exact")

    @property
    def weights(self) -> np.ndarray:
        """Effect of an error at each level on a sample, ``[S]``, summing to one.

        An error ``delta`` of the denoiser over ``d log sigma`` moves the state by
        ``delta d log sigma``, of which the later flow keeps ``c / sqrt(c^2 + sigma^2)``
        for Gaussian data of standard deviation ``c``.
        """
        weights = self.data_variance / (self.data_variance + self.sigmas**2)
        if len(self.sigmas) > 1:
            weights = weights * np.gradient(np.log(self.sigmas))
        return weights / weights.sum()

    def total_error(self, target: Target = "data") -> float:
        """Squared error of the conditional prediction without guidance.

        Per element, averaged over held-out groups and weighted over levels as the
        gains: ``worth / total_error()`` is the fraction that ``ranking`` or ``pareto``
        removes.

        Args:
            target: ``"data"``, all of ``|x0 - D_c|^2``, most of which is noise that no
                denoiser can remove, so that fractions of it are small even where
                guidance corrects everything it can. ``"exact"``, the error ``|D* -
                D_c|^2`` alone, with a mixture only.

        Raises:
            ValueError: for ``"exact"`` without a mixture.
        """
        return float(self.weights @ self._square(target))

    # -- fits -----------------------------------------------------------------------

    def fit(
        self, features: tuple[Feature, ...] | None = None, target: Target = "data"
    ) -> Fit:
        """Coefficients of some of the features; of all by default.

        Args:
            features: which of the measured features.
            target: ``"data"``, the residual of noised data; or ``"exact"``, the
                closed-form error, with a mixture only.

        Raises:
            ValueError: for a feature that was not measured, or ``"exact"`` without a
                mixture.
        """
        chosen = self.features if features is None else features
        return fit(*self._problem(chosen, target), self.held_out, self.gate)

    def fit_random_block(self, with_cfg: bool = True, target: Target = "data") -> Fit:
        """Coefficients of CFG (optional) and of one random block, as in S²-Guidance.

        The block is redrawn at each evaluation, uniformly from the measured single
        blocks, so that its moments are means over blocks. The last column is omega.

        Raises:
            ValueError: if no single block, or with ``with_cfg`` no CFG, was measured.
        """
        blocks = self._single_blocks()
        first = (CFG_FEATURE,) if with_cfg else ()
        matrix, vector = self._problem((*first, *blocks), target)
        k = len(first)
        # E[u u] of the random block is the mean of squares, not the square of a mean.
        power = np.diagonal(matrix, axis1=-2, axis2=-1)[..., k:].mean(-1)
        cross = matrix[..., :k, k:].mean(-1)
        joint = np.empty((*matrix.shape[:-2], k + 1, k + 1))
        joint[..., :k, :k] = matrix[..., :k, :k]
        joint[..., :k, k] = joint[..., k, :k] = cross
        joint[..., k, k] = power
        mean = vector[..., k:].mean(-1, keepdims=True)
        joint_vector = np.concatenate([vector[..., :k], mean], axis=-1)
        return fit(joint, joint_vector, self.held_out, self.gate)

    def removed(
        self,
        coefficients: np.ndarray,
        features: tuple[Feature, ...],
        target: Target = "data",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Squared error removed by given coefficients on held-out groups.

        Args:
            coefficients: ``[S, k]``.
            features: the feature of each column.
            target: ``"data"``, the estimate from data alone; or ``"exact"``, the true
                value, with a mixture only.

        Returns:
            Error removed per element and its standard error over held-out groups,
            ``[S]`` each.

        Raises:
            ValueError: as ``fit``.
        """
        matrix, vector = self._problem(features, target)
        outside = slice(-self.held_out, None)
        gains = gain(matrix[:, outside], vector[:, outside], coefficients[:, None])
        return gains.mean(1), gains.std(1, ddof=1) / math.sqrt(self.held_out)

    def ranking(self) -> list[tuple[Feature, float, float]]:
        """Each feature alone, the best first: error removed and its standard error."""
        rows = [(f, *self._worth(self.fit((f,)))) for f in self.features]
        return sorted(rows, key=lambda row: -row[1])

    def pareto(self, max_passes: int | None = None) -> list[ParetoPoint]:
        """The best features for each number of passes, from one pass up.

        Features are chosen by cross-validation on the groups that are not held out:
        among all subsets where these are few, else by adding the best to the previous
        ones.

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
        problem = self._problem(self.features, "data")
        chosen: tuple[int, ...] = ()
        points = [self._point(())]
        for _ in range(most):
            chosen = best_subset(*problem, self.held_out, self.weights, chosen)
            points.append(self._point(tuple(self.features[k] for k in chosen)))
        return points

    def profile(self) -> WeakPassProfile:
        """The directions in which the correction of each dropped block points.

        Raises:
            ValueError: if no feature drops blocks.
        """
        weak = [f for f in self.features if not isinstance(f, str)]
        if not weak:
            raise ValueError(
                "no dropped block was measured; calibrate with features such as (1,)."
            )
        count = self.products.shape[-1]
        products = self.products
        if self.output_products is not None:
            own = self.output_products
            products = np.concatenate([products, own[..., None, :-1]], axis=-2)
            products = np.concatenate([products, own[..., None]], axis=-1)
        rows = np.eye(products.shape[-1])
        kept = [rows[self.features.index(f)] for f in weak]
        names = [feature_name(f) for f in weak]
        single = [row for row, f in zip(kept, weak, strict=True) if len(f) == 1]
        if len(single) > 1:
            kept.append(np.mean(single, axis=0))
            names.append("mean of blocks")
        kept.append(rows[len(self.features)])
        directions: list[Direction] = []
        if self.output_products is not None:
            directions.append("output")
            kept.append(rows[count])
        if CFG_FEATURE in self.features:
            directions.append("cfg")
            kept.append(rows[self.features.index(CFG_FEATURE)])
        if self.has_truth:
            directions.append("learning_error")
            kept.append(rows[len(self.features) + 1])
        select = np.stack(kept)
        return WeakPassProfile(
            self.sigmas,
            self.weights,
            tuple(names),
            tuple(directions),
            select @ products @ select.T,
        )

    # -- rules ----------------------------------------------------------------------

    def rule(
        self,
        max_passes: int | None = None,
        features: tuple[Feature, ...] | None = None,
    ) -> CalibratedGuidance:
        """The calibrated rule for ``guided_sample``, with all features by default.

        Args:
            max_passes: most passes per evaluation; the best features are chosen.
            features: the features to use, in place of a number of passes.

        Raises:
            ValueError: if both are given, or as ``pareto`` and ``fit``.
        """
        if features is not None and max_passes is not None:
            raise ValueError("give max_passes or features, not both.")
        if features is None:
            features = self.features
            if max_passes is not None:
                features = self.pareto(max_passes)[-1].features
        coefficients = self.fit(features).coefficients
        return CalibratedGuidance(self.sigmas, coefficients, tuple(features))

    def s2_rule(self, with_cfg: bool = True, **options: Any) -> S2Guidance:
        """Plain S²-Guidance with measured ``scale(sigma)`` and ``s2_scale(sigma)``.

        Args:
            with_cfg: whether to calibrate CFG too; otherwise it is off.
            options: further options of ``S2Guidance``. The window is open by default,
                since the coefficients determine where the term acts.
        """
        *cfg, omega = self.fit_random_block(with_cfg).coefficients.T
        scale: Any = SigmaCurve(self.sigmas, 1.0 + cfg[0]) if with_cfg else 1.0
        blocks = {b[0] for b in self._single_blocks()}
        protected = tuple(b for b in range(len(self.block_costs)) if b not in blocks)
        defaults = {"protected": protected, "window": None}
        return S2Guidance(scale, SigmaCurve(self.sigmas, omega), **defaults | options)

    # -- files ----------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to one JSON file; returns its path."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        # Tuples become lists.
        text = json.dumps({"kind": _KIND, **fields}, default=np.ndarray.tolist)
        return write_text(path, json.dumps(sealed(json.loads(text))))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Calibration:
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, or not a calibration of this version.
        """
        path = as_path(path)
        found = read_json(path, Object)
        if found.get("kind") != _KIND:
            raise ValueError(f"{path} is not a saved Calibration.")
        names = {f.name for f in dataclasses.fields(cls)}
        if found.keys() - {"sha256"} != {"kind", *names}:
            raise ValueError(
                f"{path} was saved by another version; run the calibration again."
            )
        del (found := unsealed(found, path))["kind"]
        for name in ("sigmas", "products", "block_costs"):
            found[name] = np.array(found[name])
        if found["output_products"] is not None:
            found["output_products"] = np.array(found["output_products"])
        found["features"] = tuple(
            f if isinstance(f, str) else tuple(f) for f in found["features"]
        )
        return cls(**found)

    # -- internals ------------------------------------------------------------------

    def _problem(
        self, features: tuple[Feature, ...], target: Target
    ) -> tuple[np.ndarray, np.ndarray]:
        """Matrix ``[S, G, k, k]`` and vector ``[S, G, k]`` of the least squares."""
        unknown = [f for f in features if f not in self.features]
        if unknown:
            known = ", ".join(feature_name(f) for f in self.features)
            raise ValueError(
                f"features must be among those measured ({known}), got {unknown}."
            )
        columns = np.array([self.features.index(f) for f in features], int)
        matrix = self.products[..., columns[:, None], columns]
        return matrix, self.products[..., columns, self._index(target)]

    def _square(self, target: Target) -> np.ndarray:
        index = self._index(target)
        return self.products[:, -self.held_out :, index, index].mean(1)

    def _index(self, target: Target) -> int:
        """Index of the error that features are to remove in the products."""
        if target not in ("data", "exact"):
            raise ValueError(f"target must be 'data' or 'exact', got {target!r}.")
        if target == "exact" and not self.has_truth:
            raise ValueError(
                "target='exact' needs the closed form: calibrate on a mixture."
            )
        return len(self.features) + (target == "exact")

    def _single_blocks(self) -> list[tuple[int, ...]]:
        blocks: list[tuple[int, ...]] = [
            f for f in self.features if not isinstance(f, str) and len(f) == 1
        ]
        if not blocks:
            raise ValueError(
                "no single block was measured; calibrate with features such as (1,)."
            )
        return blocks

    def _worth(self, found: Fit) -> tuple[float, float]:
        # The levels use the same samples, so their errors may all have the same sign.
        return (
            float(self.weights @ found.removed),
            float(self.weights @ found.removed_error),
        )

    def _point(self, features: tuple[Feature, ...]) -> ParetoPoint:
        found = self.fit(features)
        cost = 1.0 + sum(self._cost(f) for f in features)
        idle = tuple(float(s) for s in self.sigmas[~found.active])
        return ParetoPoint(features, found, *self._worth(found), cost, idle)

    def _cost(self, feature: Feature) -> float:
        if isinstance(feature, str):
            return 1.0
        costs = np.asarray(self.block_costs)
        return float(costs[feature[0] :].sum() - costs[list(feature)].sum())
