"""The common ground of the experiments: mixtures, networks, rules, samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import gmm_guidance as gg
from gmm_guidance._runtime.checkpoints import discard, stored_steps
from toy_experiments.common.workspace import Arrays, Workspace

REGIMES = ("under", "well")
METHODS = ("unguided", "cfg", "autoguidance", "naive_s2", "s2")
TITLES = {
    "unguided": "no guidance",
    "cfg": "CFG",
    "autoguidance": "AutoGuidance",
    "naive_s2": "Naive S²",
    "s2": "S²",
}
REGIME_TITLES = {
    "exact": "exact denoiser",
    "under": "under-trained",
    "well": "well-trained",
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained denoisers, all from one training run per mixture.

    Attributes:
        under_steps: training steps of the under-trained network.
        under_weak_steps: of AutoGuidance's weak model beside it.
        well_steps: of the well-trained network.
        well_weak_steps: of AutoGuidance's weak model beside it.
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
        steps = {
            self.under_steps,
            self.under_weak_steps,
            self.well_steps,
            self.well_weak_steps,
        }
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

    def rule(self, method: str, weak_model: Any) -> gg.GuidanceRule:
        """The rule of a method; the weak model is AutoGuidance's."""
        if method == "unguided":
            return gg.Unguided()
        if method == "cfg":
            return gg.CFG(self.cfg_scale)
        if method == "autoguidance":
            return gg.AutoGuidance(weak_model, self.autoguidance_scale)
        masks = self.num_masks if method == "naive_s2" else 1
        return gg.S2Guidance(
            self.cfg_scale, self.s2_scale, self.num_dropped, num_masks=masks
        )

    def exact_rule(self, method: str) -> gg.GuidanceRule:
        """The rule of a method with exact denoisers.

        The sub-network of a perfect network is perfect at best, and so is a perfect
        weak model: then their terms vanish, S² is CFG and AutoGuidance no guidance.
        """
        if method in ("unguided", "autoguidance"):
            return gg.Unguided()
        return gg.CFG(self.cfg_scale)


def make_mixture(dim: int, std: float) -> gg.GaussianMixture:
    """The paper's toy in one or two dimensions."""
    return gg.presets.two_modes(std) if dim == 1 else gg.presets.four_corners(std)


def trained(
    workspace: Workspace, dim: int, std: float, networks: Networks, num_seeds: int
) -> gg.TrainingRun:
    """The training run of the paper's toy: loaded, resumed or started."""
    return train_on(
        workspace,
        make_mixture(dim, std),
        networks.training(),
        num_seeds,
        identity={"dim": dim, "std": std},
        title=f"{dim}-D",
    )


def train_on(
    workspace: Workspace,
    mixture: gg.GaussianMixture,
    config: gg.TrainingConfig,
    num_seeds: int,
    *,
    identity: dict[str, Any],
    title: str,
) -> gg.TrainingRun:
    """All snapshots of all seeds from one run: loaded, resumed or started.

    Args:
        workspace: where the run is stored.
        mixture: the data.
        config: the training.
        num_seeds: seeds 0, 1, ...
        identity: what tells the mixture apart from others.
        title: the mixture's name on the progress bar.
    """
    path = workspace.cell_path(
        "networks",
        {**identity, "config": dataclasses.asdict(config), "seeds": num_seeds},
        ".safetensors",
    )
    if workspace.is_stored(path):
        try:
            return gg.TrainingRun.load(path, config)
        except ValueError:
            path.unlink()  # damaged: train again
    checkpoint = path.with_suffix(".checkpoint")
    if workspace.fresh:
        discard(checkpoint, stored_steps(checkpoint))
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    name = f"training {num_seeds} networks on {title}"
    with workspace.reporter.task(name, config.num_steps) as task:

        def report(progress: gg.TrainingProgress) -> None:
            task.move_to(
                progress.step,
                f"loss {progress.loss:.3f}, {progress.steps_per_second:.0f} steps/s",
            )

        run = gg.train_denoisers(
            keys,
            mixture,
            config,
            progress=report,
            checkpoint=checkpoint,
            mesh=workspace.mesh,
        )
    run.save(path)
    workspace.mark_made(path)
    return run


def balanced_labels(mixture: gg.GaussianMixture, num_samples: int) -> np.ndarray:
    """Labels 0, 1, ... in turn."""
    return (np.arange(num_samples) % mixture.num_labels).astype(np.int32)


def sample_cell(
    workspace: Workspace,
    mixture: gg.GaussianMixture,
    denoiser: gg.TrainedDenoiser | gg.ExactDenoiser,
    rule: gg.GuidanceRule,
    *,
    identity: dict[str, Any],
    seed: int,
    num_samples: int,
    schedule: gg.Karras,
    mask_seed: int | None = None,
) -> Arrays:
    """Samples of all classes in turn, ``[n, d]``; stored as a cell.

    Args:
        workspace: where the cell is stored.
        mixture: the data.
        denoiser: what is sampled.
        rule: the guidance.
        identity: what tells denoiser and rule apart from others.
        seed: seed of the noise (and of the masks unless ``mask_seed`` is given).
        num_samples: how many.
        schedule: noise levels.
        mask_seed: seed of the masks alone.
    """
    labels = balanced_labels(mixture, num_samples)
    key = jax.random.key(1000 + seed)
    noise_key, mask_key = jax.random.split(key)
    if mask_seed is not None:
        mask_key = jax.random.fold_in(mask_key, 1 + mask_seed)

    def compute() -> Arrays:
        noise = jax.random.normal(noise_key, (num_samples, mixture.dim))
        samples = gg.guided_sample(
            mask_key,
            denoiser,
            labels,
            num_samples=num_samples,
            guidance=rule,
            schedule=schedule,
            initial=schedule.sigma_max * noise,
            mesh=workspace.mesh,
        )
        return {"samples": np.asarray(samples)}

    description = {
        **identity,
        "seed": seed,
        "num_samples": num_samples,
        "schedule": repr(schedule),
        "mask_seed": mask_seed,
    }
    return workspace.cell("samples", description, compute)
