"""The setting of the paper's toy figures: two modes on a line, four in the plane."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

import gmm_guidance as gg
from toy_experiments.common.experiment import Config
from toy_experiments.common.mixtures import MixtureName, balanced_labels, make_mixture
from toy_experiments.common.networks import trained
from toy_experiments.common.rules import exact_name, make_rule
from toy_experiments.common.store import Arrays, Context, Store

PAPER_MIXTURES: tuple[MixtureName, ...] = ("two_modes", "four_corners")
REGIMES = ("under", "well")
#: Rows of figures: the exact denoiser and the trained networks.
NETWORKS = ("exact", *REGIMES)
NETWORK_TITLES = {
    "exact": "exact denoiser",
    "under": "under-trained",
    "well": "well-trained",
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained denoisers, all from one training run per mixture.

    Attributes:
        under_steps: training steps of the under-trained network.
        under_weak_steps: training steps of its weak model for AutoGuidance.
        well_steps: training steps of the well-trained network.
        well_weak_steps: training steps of its weak model for AutoGuidance.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
    """

    under_steps: int = 50
    under_weak_steps: int = 25
    well_steps: int = 5000
    well_weak_steps: int = 500
    width: int = 32
    num_blocks: int = 8
    batch_size: int = 512

    def training(self) -> gg.TrainingConfig:
        """The training run that contains all of them."""
        steps = {*self.steps("under"), *self.steps("well")}
        return gg.TrainingConfig(
            snapshots=tuple(sorted(steps)),
            width=self.width,
            num_blocks=self.num_blocks,
            batch_size=self.batch_size,
        )

    def steps(self, regime: str) -> tuple[int, int]:
        """Training steps of a regime's network and of its weak model."""
        if regime == "under":
            return self.under_steps, self.under_weak_steps
        return self.well_steps, self.well_weak_steps


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Scales and masks of the rules that are compared.

    Attributes:
        cfg_scale: total CFG scale; 1 = off.
        autoguidance_scale: total scale; 1 = off.
        s2_scale: the paper's omega; 0 = off.
        num_dropped: blocks dropped in a weak pass.
        num_masks: weak passes of Naive S² per step.
    """

    cfg_scale: float = 2.0
    autoguidance_scale: float = 2.0
    s2_scale: float = 0.25
    num_dropped: int = 1
    num_masks: int = 4

    def rule(self, method: str, weak_model: Any = None) -> gg.GuidanceRule:
        """The rule of a method; the weak model is AutoGuidance's."""
        is_auto = method == "autoguidance"
        return make_rule(
            method,
            self.autoguidance_scale if is_auto else self.cfg_scale,
            self.s2_scale,
            weak_model=weak_model,
            num_dropped=self.num_dropped,
            num_masks=self.num_masks,
        )


@dataclasses.dataclass(frozen=True)
class PaperConfig(Config):
    """Base configuration of the experiments in the paper's setting.

    Attributes:
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        std: standard deviation of each mode; the modes lie at -4 and 4.
        networks: how the denoisers are trained.
        guidance: scales and masks of the rules.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    std: float = 1.0
    networks: Networks = Networks()
    guidance: Guidance = Guidance()

    QUICK: ClassVar[dict[str, Any]] = Config.QUICK | {
        "num_samples": 1024,
        "num_steps": 16,
        "networks": Networks(well_steps=1000, well_weak_steps=200, batch_size=256),
    }

    def __post_init__(self):
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}.")
        self.schedule()

    def schedule(self) -> gg.Karras:
        """The noise levels of the sampler (Heun)."""
        return gg.Karras(self.num_steps, self.sigma_min, self.sigma_max)

    def setting(self, store: Store, mixture: MixtureName) -> Setting:
        """The mixture with its trained networks."""
        made = make_mixture(mixture, self.std)
        run = trained(store, made, self.networks.training(), self.seeds)
        return Setting(self, made, run)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A mixture, its denoisers, and their rules.

    Attributes:
        config: the configuration.
        mixture: the data.
        run: the trained networks.
    """

    config: PaperConfig
    mixture: gg.GaussianMixture
    run: gg.TrainingRun

    def denoiser(self, network: str, seed: int) -> Any:
        """The denoiser of a row of ``NETWORKS``."""
        if network == "exact":
            return gg.ExactDenoiser(self.mixture)
        return self.run.denoiser(seed, self.config.networks.steps(network)[0])

    def rule(self, network: str, method: str, seed: int) -> gg.GuidanceRule:
        """The rule of a method, on the denoiser of a row."""
        if network == "exact":
            return self.config.guidance.rule(exact_name(method))
        weak_steps = self.config.networks.steps(network)[1]
        return self.config.guidance.rule(method, self.run.denoiser(seed, weak_steps))

    def samples(
        self,
        store: Store,
        network: str,
        rule: gg.GuidanceRule,
        seed: int,
        mask_seed: int | None = None,
    ) -> np.ndarray:
        """Samples of all classes in turn, ``[n, d]``; a stored cell."""
        config = self.config
        return store.cell(
            draw_samples,
            self.mixture,
            self.denoiser(network, seed),
            rule,
            config.schedule(),
            config.num_samples,
            seed,
            mask_seed,
        )["samples"]


def line_density(x: np.ndarray, std: float) -> np.ndarray:
    """Density of ``two_modes`` without condition."""
    modes = sum(np.exp(-0.5 * ((x - m) / std) ** 2) for m in (-4.0, 4.0))
    return modes / (2.0 * std * np.sqrt(2.0 * np.pi))


def draw_samples(
    context: Context,
    mixture: gg.GaussianMixture,
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.Karras,
    num_samples: int,
    seed: int,
    mask_seed: int | None,
) -> Arrays:
    """Samples of all classes in turn.

    Args:
        context: the mesh.
        mixture: the data.
        denoiser: what is sampled.
        rule: the guidance.
        schedule: noise levels.
        num_samples: how many.
        seed: seed of the noise (and of the masks unless ``mask_seed`` is given).
        mask_seed: seed of the masks alone.
    """
    noise_key, mask_key = jax.random.split(jax.random.key(1000 + seed))
    if mask_seed is not None:
        mask_key = jax.random.fold_in(mask_key, 1 + mask_seed)
    noise = jax.random.normal(noise_key, (num_samples, mixture.dim))
    samples = gg.guided_sample(
        mask_key,
        denoiser,
        balanced_labels(mixture, num_samples),
        num_samples=num_samples,
        guidance=rule,
        schedule=schedule,
        initial=schedule.sigma_max * noise,
        mesh=context.mesh,
    )
    return {"samples": np.asarray(samples)}
