"""The setting of the paper's toy figures: two modes on a line, four in the plane.

Beside an under-trained and a well-trained network of this library stands a paper-like
one. The paper states neither its network nor its sampler; the paper-like setting is
what small DDPM code does, was declared before it was first run, and is not tuned.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

import gmm_guidance as gg
from toy_experiments.common.experiment import Config, check_at_least
from toy_experiments.common.mixtures import (
    MixtureName,
    balanced_start,
    make_mixture,
)
from toy_experiments.common.networks import trained
from toy_experiments.common.rules import exact_name, make_rule
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.sweep import draw_samples_of

PAPER_MIXTURES: tuple[MixtureName, ...] = ("two_modes", "four_corners")
REGIMES = ("under", "well")
#: Rows of figures: the exact denoiser and the trained networks.
NETWORKS = ("exact", *REGIMES)
NETWORK_TITLES = {
    "exact": "exact denoiser",
    "under": "under-trained",
    "well": "well-trained",
    "paper_like": "paper-like",
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained denoisers, all from one training run per mixture.

    The learning rate falls to zero as a cosine: the shorter lengths are those of a run
    that has hardly begun to fall.

    Attributes:
        under_steps: training steps of the under-trained network.
        under_weak_steps: training steps of its weak model for AutoGuidance.
        well_steps: training steps of the well-trained network.
        well_weak_steps: training steps of its weak model for AutoGuidance.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
    """

    under_steps: int = 60
    under_weak_steps: int = 30
    well_steps: int = 1500
    well_weak_steps: int = 300
    width: int = 32
    num_blocks: int = 8
    batch_size: int = 256

    def training(self) -> gg.TrainingConfig:
        """The training run that contains all of them."""
        steps = {*self.steps("under"), *self.steps("well")}
        return gg.TrainingConfig(
            snapshots=tuple(sorted(steps)),
            width=self.width,
            num_blocks=self.num_blocks,
            batch_size=self.batch_size,
            decay_steps=None,
            ema_decay=0.99,
        )

    def steps(self, regime: str) -> tuple[int, int]:
        """Training steps of a regime's network and of its weak model."""
        if regime == "under":
            return self.under_steps, self.under_weak_steps
        return self.well_steps, self.well_weak_steps


@dataclasses.dataclass(frozen=True)
class PaperLike:
    """The paper-like network and its guidance.

    Noise prediction on the levels of DDPM's linear betas, residual blocks without
    norms, Adam with a constant learning rate, the last weights without averaging; DDIM;
    S² in all steps, as in the paper's Algorithm 1.

    Attributes:
        steps: training lengths; the weak model of AutoGuidance has a fifth of each.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
        num_steps: steps of DDIM.
        cfg_scale: total CFG scale.
        high_cfg_scale: a second one, in the numbers alone.
        s2_scale: the paper's omega.
        strong_s2_scale: a second one.
    """

    steps: tuple[int, ...] = (1000,)
    width: int = 64
    num_blocks: int = 8
    batch_size: int = 256
    num_steps: int = 50
    cfg_scale: float = 4.0
    high_cfg_scale: float = 7.5
    s2_scale: float = 0.25
    strong_s2_scale: float = 1.0

    def __post_init__(self):
        check_at_least(5, steps=min(self.steps, default=0))
        self.schedule()

    def training(self) -> gg.TrainingConfig:
        """The training run of all lengths and weak models."""
        return gg.TrainingConfig(
            snapshots=tuple(sorted({*self.steps, *map(self.weak_steps, self.steps)})),
            width=self.width,
            num_blocks=self.num_blocks,
            batch_size=self.batch_size,
            prediction="epsilon",
            block="plain",
            noise="ddpm",
            learning_rate=1e-3,
            warmup_steps=0,
            decay_steps=1 << 30,
            adam_b2=0.999,
            clip_norm=1e6,
            ema_decay=0.0,
            label_dropout=0.1,
        )

    @staticmethod
    def weak_steps(steps: int) -> int:
        """Training steps of the weak model."""
        return steps // 5

    def schedule(self) -> gg.DDPMSteps:
        """The noise levels of DDIM."""
        return gg.DDPMSteps(self.num_steps, spacing="linspace")

    def guidance(self, shared: Guidance, high: bool = False) -> Guidance:
        """Scales and masks; what is not said here as in the other rows."""
        return dataclasses.replace(
            shared,
            cfg_scale=self.high_cfg_scale if high else self.cfg_scale,
            s2_scale=self.s2_scale,
            strong_s2_scale=self.strong_s2_scale,
            window=None,
        )


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Scales and masks of the rules that are compared.

    Attributes:
        cfg_scale: total CFG scale; 1 = off.
        autoguidance_scale: total scale; 1 = off.
        s2_scale: the paper's omega; 0 = off.
        num_dropped: blocks dropped in a weak pass.
        num_masks: weak passes of Naive S² per step.
        strong_s2_scale: a second omega, which the rule ``s2_strong`` has.
        window: fractions of the steps in which the S² term acts; ``None`` for all.
    """

    cfg_scale: float = 2.0
    autoguidance_scale: float = 2.0
    s2_scale: float = 0.25
    num_dropped: int = 1
    num_masks: int = 4
    strong_s2_scale: float = 1.0
    window: tuple[float, float] | None = (0.1, 0.9)

    def rule(self, method: str, weak_model: Any = None) -> gg.GuidanceRule:
        """The rule of a method; the weak model is AutoGuidance's."""
        is_auto = method == "autoguidance"
        return make_rule(
            method,
            self.autoguidance_scale if is_auto else self.cfg_scale,
            self.strong_s2_scale if method == "s2_strong" else self.s2_scale,
            weak_model=weak_model,
            num_dropped=self.num_dropped,
            num_masks=self.num_masks,
            window=self.window,
        )


@dataclasses.dataclass(frozen=True)
class PaperConfig(Config):
    """Base configuration of the experiments in the paper's setting.

    Attributes:
        num_samples: samples in the plane, all classes together, of quasi-random noise;
            half as many on a line, where they are quantiles without sampling noise.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        std: standard deviation of each mode; the modes lie at -4 and 4.
        networks: how the denoisers are trained.
        guidance: scales and masks of the rules.
        paper_like: the paper-like network, in the experiments that show it.
    """

    num_samples: int = 1024
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    std: float = 1.0
    networks: Networks = Networks()
    guidance: Guidance = Guidance()
    paper_like: PaperLike = PaperLike()

    QUICK: ClassVar[dict[str, Any]] = Config.QUICK | {
        "num_samples": 512,
        "num_steps": 12,
        "networks": Networks(well_steps=300, well_weak_steps=100, batch_size=128),
        "paper_like": PaperLike(steps=(200,), width=32, batch_size=128, num_steps=12),
    }
    FULL: ClassVar[dict[str, Any]] = {"paper_like": PaperLike(steps=(1000, 10_000))}

    def __post_init__(self):
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}.")
        self.schedule()

    def schedule(self) -> gg.Karras:
        """The noise levels of the sampler (Heun)."""
        return gg.Karras(self.num_steps, self.sigma_min, self.sigma_max)

    def rows(self) -> list[tuple[str, int | None]]:
        """Networks and training lengths: exact, under, well, and the paper-like."""
        own = [(name, self.networks.steps(name)[0]) for name in REGIMES]
        paper_like = [("paper_like", steps) for steps in self.paper_like.steps]
        return [("exact", None), *own, *paper_like]

    def setting(
        self, store: Store, mixture: MixtureName, paper_like: bool = False
    ) -> Setting:
        """The mixture with its trained networks, the paper-like ones if asked for."""
        return self.settings(store, mixture, paper_like=paper_like)[0]

    def settings(
        self, store: Store, *mixtures: MixtureName, paper_like: bool = False
    ) -> list[Setting]:
        """``setting`` of several mixtures."""
        configs = [self.networks.training()]
        configs += [self.paper_like.training()] if paper_like else []
        # One by one: checkpoints are not written in several threads.
        runs = {
            (name, config): trained(
                store, make_mixture(name, self.std), config, self.seeds
            )
            for name in mixtures
            for config in configs
        }
        return [
            Setting(
                self,
                make_mixture(name, self.std),
                runs[name, configs[0]],
                runs[name, configs[-1]],
            )
            for name in mixtures
        ]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A mixture, its denoisers, and their rules.

    Attributes:
        config: the configuration.
        mixture: the data.
        run: the trained networks.
        paper_run: the paper-like ones.
    """

    config: PaperConfig
    mixture: gg.GaussianMixture
    run: gg.TrainingRun
    paper_run: gg.TrainingRun

    @property
    def num_samples(self) -> int:
        """Samples of a run; half as many on a line."""
        return self.config.num_samples // (2 if self.mixture.dim == 1 else 1)

    def denoiser(self, network: str, seed: int, steps: int | None = None) -> Any:
        """The denoiser of a row, or one of its run after other training steps."""
        if network == "exact":
            return gg.ExactDenoiser(self.mixture)
        paper_like = network == "paper_like"
        run = self.paper_run if paper_like else self.run
        if steps is None:
            own = self.config.networks
            steps = run.config.num_steps if paper_like else own.steps(network)[0]
        return run.denoiser(seed, steps).network  # one program for all lengths

    def rule(
        self,
        network: str,
        method: str,
        seed: int,
        steps: int | None = None,
        high: bool = False,
    ) -> gg.GuidanceRule:
        """The rule of a method, on the denoiser of a row."""
        guidance = self.config.guidance
        if network == "exact":
            return guidance.rule(exact_name(method))
        if network == "paper_like":
            paper_like = self.config.paper_like
            guidance = paper_like.guidance(guidance, high)
            weak = paper_like.weak_steps(steps or paper_like.steps[-1])
        else:
            weak = self.config.networks.steps(network)[1]
        return guidance.rule(method, self.denoiser(network, seed, weak))

    def samples(
        self,
        store: Store,
        network: str,
        rule: gg.GuidanceRule,
        seed: int,
        mask_seed: int | None = None,
        steps: int | None = None,
    ) -> np.ndarray:
        """Samples of all classes in turn, ``[n, d]``."""
        return self.paths(store, network, rule, seed, mask_seed, steps)[-1]

    def paths(
        self,
        store: Store,
        network: str,
        rule: gg.GuidanceRule,
        seed: int,
        mask_seed: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
    ) -> np.ndarray:
        """States of all classes in turn, ``[levels, n, d]``; a stored cell.

        On a line at all noise levels, in the plane at the last alone. ``sampler`` names
        a row whose sampler is taken in place of the network's own.
        """
        config = self.config
        paper_like = (sampler or network) == "paper_like"
        return store.cell(
            draw_samples,
            self.mixture,
            self.denoiser(network, seed, steps),
            rule,
            config.paper_like.schedule() if paper_like else config.schedule(),
            "euler" if paper_like else "heun",
            self.num_samples,
            seed,
            mask_seed,
        )["states"]


def line_density(x: np.ndarray, std: float) -> np.ndarray:
    """Density of ``two_modes`` without condition."""
    modes = sum(np.exp(-0.5 * ((x - m) / std) ** 2) for m in (-4.0, 4.0))
    return modes / (2.0 * std * np.sqrt(2.0 * np.pi))


def draw_samples(
    context: Context,
    mixture: gg.GaussianMixture,
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.Karras | gg.DDPMSteps,
    solver: str,
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
        solver: the solver.
        num_samples: how many.
        seed: seed of the noise (and of the masks unless ``mask_seed`` is given).
        mask_seed: seed of the masks alone.
    """
    key = jax.random.key(1000 + seed)
    if mask_seed is not None:
        key = jax.random.fold_in(key, 1 + mask_seed)
    labels, start = balanced_start(mixture, schedule, num_samples, seed)
    line = mixture.dim == 1
    states = draw_samples_of(
        denoiser, rule, schedule, key, labels, start, context.mesh, solver, line
    )
    return {"states": states if line else states[None]}
