"""Options that several commands share, and what they amount to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

import gmm_guidance as gg
from full_models.generation.fingerprint import fingerprint
from full_models.models.dit.labels import labels_of
from full_models.models.dit.network import DiT, WithVariance
from full_models.weights.load import load_weights
from gmm_guidance.guidance.rule import expected_passes

SolverName = Literal["euler", "heun", "dpmpp_2m", "ancestral"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which network, and how it is computed."""

    weights: Path
    """Checkpoint: a .pt of DiT or SiT, a diffusers folder, or our own format."""
    model: str | None = None
    """Its name, DiT-XL/2 or SiT-B/4 say; needed for .pt files, checked for others."""
    precision: Precision = "auto"
    """Of matrix products and weights: bfloat16 on accelerators, float32 on a CPU."""

    def load(self, mesh: Mesh | None = None) -> DiT:
        """The network, on the devices of a mesh if one is given."""
        narrow = self.resolved_precision() == "bfloat16"
        precision: Any = "bfloat16" if narrow else "float32"
        return load_weights(
            self.weights,
            self.model,
            dtype=precision,
            compute_dtype=precision,
            mesh=mesh,
        )

    def describe(self) -> dict[str, Any]:
        """What the network's values depend on."""
        return {
            "model": self.model,
            "weights": self.weights.name,
            "weights_sha256": fingerprint(self.weights),
            "precision": self.resolved_precision(),
        }

    def resolved_precision(self) -> str:
        """``precision`` on this machine."""
        if self.precision != "auto":
            return self.precision
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """What is drawn, and how."""

    labels: str = "207,360"
    """Classes by number or ImageNet name, taken in turn; or all, or random."""
    num: int = 16
    """Number of images."""
    steps: int = 50
    """Steps of the solver."""
    solver: SolverName = "euler"
    """euler is DDIM; ancestral is DDPM with the learned variance (DiT only)."""
    seed: int = 0
    """Of the noise and of the dropped blocks."""
    batch_size: int = 8
    """Images at once on each device."""
    mesh: str = "data=0"
    """Devices that divide the images (data; 0: all), the weights of each block (fsdp)
    and its matrix products (tensor): data=4,fsdp=2, say."""

    def __post_init__(self):
        for name in ("num", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        gg.MeshConfig.parse(self.mesh)

    def build_mesh(self) -> Mesh:
        """The devices.

        Raises:
            ValueError: if there are more or fewer than the mesh has.
        """
        return gg.MeshConfig.parse(self.mesh).build()

    def chosen_labels(self, network: DiT) -> np.ndarray:
        """The label of each image, ``[num]``."""
        return labels_of(self.labels, self.num, network.num_labels, self.seed)

    def schedule(self, network: DiT) -> Any:
        """Steps of the network's own process."""
        if network.config.process == "flow":
            return gg.FlowSteps(self.steps)
        spacing: Any = "linspace" if self.solver == "ancestral" else "trailing"
        return gg.DDPMSteps(self.steps, spacing=spacing)

    def solver_for(self, network: DiT) -> Any:
        """The solver; the ancestral one with the variance that the network has.

        Raises:
            ValueError: for the ancestral solver of a flow.
        """
        if self.solver != "ancestral":
            return self.solver
        if network.config.process == "flow":
            raise ValueError(
                "the ancestral solver is of DDPM chains (DiT), got a flow (SiT); use "
                "euler, heun or dpmpp_2m."
            )
        return gg.Ancestral("learned" if network.config.learn_sigma else "posterior")

    def drawn_model(self, network: DiT) -> Any:
        """The network, with its variance where the solver uses it."""
        learned = self.uses_learned_variance(network)
        return WithVariance(network) if learned else network

    def uses_learned_variance(self, network: DiT) -> bool:
        """Whether the model's output holds variance channels in this run."""
        solver = self.solver_for(network)
        return isinstance(solver, gg.Ancestral) and solver.variance == "learned"


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """S²-Guidance on top of classifier-free guidance."""

    cfg_scale: float = 4.0
    """Total scale of CFG; 1 is off."""
    s2_scale: float = 0.25
    """Weight of the S² term; 0 is off, and costs nothing then."""
    num_dropped: int = 1
    """Blocks dropped in each weak pass."""
    num_masks: int = 1
    """Weak passes in each step; more than one is Naive S²."""
    window: tuple[float, float] = (0.1, 0.9)
    """Shares of the steps between which the S² term acts."""
    guided_channels: int | None = None
    """Guide only the first channels: 3 repeats published DiT/SiT samples. All else."""

    def rule(self, network: DiT, learned_variance: bool = False) -> gg.GuidanceRule:
        """The rule for a network; channels beyond the sample's are never guided."""
        if self.s2_scale == 0:
            inner: gg.GuidanceRule = gg.CFG(self.cfg_scale)
        else:
            inner = gg.S2Guidance(
                self.cfg_scale,
                self.s2_scale,
                num_dropped=self.num_dropped,
                num_masks=self.num_masks,
                window=self.window,
            )
            # The whole stack is known here: a law that cannot hold is an error at once.
            gg.FixedCount(self.num_dropped, (0,)).check(network.num_blocks)
        return self.on_channels(inner, network, learned_variance)

    def on_channels(
        self, rule: gg.GuidanceRule, network: DiT, learned_variance: bool
    ) -> gg.GuidanceRule:
        """A rule on the channels that are to be guided."""
        channels = network.config.in_channels
        guided = channels if self.guided_channels is None else self.guided_channels
        if not 1 <= guided <= channels:
            raise ValueError(
                f"guided_channels must be in 1..{channels} for this model, got "
                f"{guided}."
            )
        if guided == channels and not learned_variance:
            return rule
        return gg.GuidedChannels(rule, guided)


def num_rows(rule: gg.GuidanceRule, network: DiT) -> int:
    """Most distinct passes of the rule at once."""
    passes = expected_passes(rule, network.num_blocks, label=object())
    full = {id(p.label) for p in passes if p.drop is None}
    return len(full) + sum(p.drop is not None for p in passes)
