"""Options that several commands share, and the run that they describe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

import gmm_guidance as gg
from full_models.generation.labels import choose_labels
from full_models.generation.sampler import MeshSampler
from full_models.models.autoencoder import load_autoencoder
from full_models.models.family import Pipeline
from full_models.prompts.prompts import load_prompts
from full_models.weights.load import Checkpoint, open_checkpoint
from gmm_guidance._runtime.checks import key_of_seed
from gmm_guidance._runtime.files import sha256
from gmm_guidance.guidance import parse_rule

SolverName = Literal["euler", "heun", "dpmpp_2m", "unipc", "ancestral"]
Precision = Literal["auto", "float32", "bfloat16"]
Options = TypeVar("Options")
_MOST_NAMES = 8  # that the terminal shows
_OfModel = tyro.conf.arg(help_behavior_hint="(default: the model's)")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The model and its precision."""

    weights: Path
    """Weights: a published checkpoint (.pt, .safetensors), a folder of diffusers, or
    one of export_weights."""
    model: str | None = None
    """Name of the published model, such as DiT-XL/2 or SiT-B/4; required where the
    weights do not tell."""
    root: str | None = None
    """Entry of a PyTorch file that holds the weights, such as model; an average of the
    weights (ema) by default. A prefix of the names of tensors, such as ema., or both,
    such as state_dict/ema., chooses among several models of a file."""
    ignore: tuple[str, ...] = ()
    """Beginnings of the names of tensors to leave out, such as projectors. for heads
    that sampling does not use."""
    frames: int | None = None
    """Number of frames of each video, 4 k + 1, for models that draw videos; 81 by
    default."""
    precision: Precision = "auto"
    """Type of matrix products and weights; auto is bfloat16 on accelerators and float32
    on a CPU."""

    def open(self) -> Checkpoint:
        """The checkpoint and its model; no tensor is read."""
        precision: Any = self.resolved_precision()
        found = open_checkpoint(
            self.weights,
            self.model,
            compute_dtype=precision,
            root=self.root,
            ignore=self.ignore,
        )
        if self.frames is None:
            return found
        if not hasattr(found.config, "for_frames"):
            raise ValueError(
                f"--frames is for models that draw videos, but {found.family.name} "
                f"draws images; leave it out."
            )
        config = found.config.for_frames(self.frames)
        return dataclasses.replace(found, config=config)

    def describe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the values of the model depend on."""
        return {
            "weights": self.weights.name,
            "weights_sha256": checkpoint.sha256(),
            **({"root": checkpoint.root} if checkpoint.root else {}),
            **({"ignore": list(self.ignore)} if self.ignore else {}),
            "config": dataclasses.asdict(checkpoint.config),
            "precision": self.resolved_precision(),
        }

    def resolved_precision(self) -> str:
        """``precision`` on this machine."""
        if self.precision != "auto":
            return self.precision
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """The samples and their computation."""

    labels: Annotated[str | None, _OfModel] = None
    """Classes by number or ImageNet name, taken in turn (corgi takes every class with
    this word in its names); all, random, or none for unconditional samples."""
    prompts: Path | None = None
    """Prompts of a text-to-image or text-to-video model, taken in turn: a file or
    folder of embed-prompts."""
    size: str | None = None
    """Width and height in pixels, such as 1024x768, for models that draw any; 1024x1024
    by default, of videos 832x480."""
    num: int = 16
    """Number of samples."""
    steps: Annotated[int | None, _OfModel] = None
    """Number of steps of the solver."""
    solver: Annotated[SolverName | None, _OfModel] = None
    """Solver; euler is DDIM, ancestral is DDPM with the variance of the model."""
    seed: int = 0
    """Random seed of the noise and the dropped blocks."""
    batch_size: int = 8
    """Number of samples that each device computes at once."""
    mesh: str = "data=0"
    """Devices that divide the samples (data; 0: all), the weights of each block (fsdp)
    and its matrix products (tensor), such as data=4,fsdp=2."""
    vae: Path | None = None
    """Folder or file of the autoencoder (diffusers) that decodes latents to images;
    none keeps latents."""

    def __post_init__(self):
        for name in ("num", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        gg.MeshConfig.parse(self.mesh)
        if self.size is not None and not re.fullmatch(r"\d+x\d+", self.size):
            raise ValueError(
                f"size must be width x height in pixels, such as 1024x768, got "
                f"{self.size!r}."
            )


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """S²-Guidance on top of classifier-free guidance."""

    cfg_scale: Annotated[float | None, _OfModel] = None
    """Total CFG scale; 1 is off."""
    s2_scale: Annotated[float | None, _OfModel] = None
    """Weight of the S² term; 0 is off and saves its passes."""
    num_dropped: int = 1
    """Number of blocks dropped in each weak pass."""
    num_masks: int = 1
    """Number of weak passes in each step; more than one is Naive S²."""
    window: Annotated[tuple[float, float] | None, _OfModel] = None
    """Fractions of the steps between which the S² term acts."""
    guided_channels: int | None = None
    """Number of channels that are guided, from the first; 3 reproduces the published
    samples of class-conditional transformers. All by default."""
    rule: tuple[str, ...] = ()
    """Another rule by name and its options, such as pag blocks=13 pag_scale=3; S² by
    default. Its scale is the CFG scale and its block the middle one, if not given."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A model and how it is sampled: options completed by the defaults of the model.

    Attributes:
        checkpoint: the model.
        model: its options.
        draw: the samples, complete.
        guidance: the guidance, complete.
    """

    checkpoint: Checkpoint
    model: ModelOptions
    draw: DrawOptions
    guidance: GuidanceOptions

    @classmethod
    def of(
        cls,
        model: ModelOptions,
        draw: DrawOptions,
        guidance: GuidanceOptions,
        checkpoint: Checkpoint | None = None,
    ) -> Run:
        """The run of options; reads no tensor. Raises as ``load_weights``."""
        checkpoint = _of_size(checkpoint or model.open(), draw.size)
        run = cls(checkpoint, model, draw, guidance)
        _check_condition(run.pipeline, draw)
        defaults = run.pipeline.defaults._asdict()
        return dataclasses.replace(
            run,
            draw=_completed(draw, defaults),
            guidance=_completed(guidance, defaults),
        )

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the model."""
        return self.checkpoint.pipeline

    def describe(self) -> dict[str, Any]:
        """What the samples depend on; files by their content."""
        draw = dataclasses.asdict(self.draw)
        for name in ("batch_size", "mesh"):  # nothing but last bits depends on them
            del draw[name]
        if self.draw.vae is not None:
            vae = self.draw.vae
            draw["vae"] = {"name": vae.name, "sha256": sha256(vae)}
        for name in ("prompts", "size"):
            if draw[name] is None:
                del draw[name]
        if self.draw.prompts is not None:
            prompts = self.draw.prompts
            draw["prompts"] = {"name": prompts.name, "sha256": sha256(prompts)}
        return {
            "model": self.model.describe(self.checkpoint),
            "draw": draw,
            "guidance": dataclasses.asdict(self.guidance),
        }

    def load(self) -> LoadedRun:
        """Load the model and the decoder onto the mesh.

        Raises:
            ValueError: if there are fewer or more devices than the mesh has, or if the
                decoder is for other latents.
        """
        mesh = gg.MeshConfig.parse(self.draw.mesh).build()
        model = self.checkpoint.load(self.model.resolved_precision(), mesh)
        if self.draw.prompts is not None:
            model = model.with_prompts(load_prompts(self.draw.prompts))
        if self.draw.vae is None:
            return LoadedRun(self, mesh, model, None)
        named = getattr(self.pipeline, "autoencoder", None)
        decoder = load_autoencoder(self.draw.vae, config=named)
        wanted, found = self.pipeline.sample_shape[-1], decoder.config.latent_channels
        if wanted != found:
            raise ValueError(
                f"the autoencoder decodes latents of {found} channels, but the model "
                f"draws {wanted}; check --vae."
            )
        return LoadedRun(self, mesh, model, decoder)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run with its model on the devices.

    Attributes:
        run: the run.
        mesh: the devices.
        model: the model.
        decoder: decoder of an autoencoder, or ``None``.
    """

    run: Run
    mesh: Mesh
    model: Any
    decoder: Any

    @property
    def solver(self) -> Any:
        """The solver."""
        name: Any = self.run.draw.solver
        return self.run.pipeline.solver(name)

    @property
    def schedule(self) -> Any:
        """The noise levels."""
        steps: Any = self.run.draw.steps
        return self.run.pipeline.schedule(steps, self.solver)

    def labels(self) -> np.ndarray:
        """The label of each sample, ``[num]``."""
        draw: Any = self.run.draw
        labels_of = self.run.pipeline.labels_of
        count = self.model.num_labels
        if draw.labels == "none" and not getattr(self.model, "null_label", True):
            raise ValueError(
                "--labels none is for models with a null class, but this one was "
                "trained without dropping labels; name classes."
            )
        return choose_labels(draw.labels, draw.num, count, draw.seed, labels_of)

    def label_names(self) -> str:
        """The names of a few labels, for the terminal; empty for numbers alone."""
        labels = list(dict.fromkeys(self.labels().tolist()))
        names = [self.run.pipeline.label_name(label) for label in labels]
        if len(names) > _MOST_NAMES or names == list(map(str, labels)):
            return ""
        return f" of {', '.join(names)}"

    def rule(self) -> gg.GuidanceRule:
        """The guidance rule of the options, checked against the depth of the model."""
        options: Any = self.run.guidance
        if options.rule:
            return self.named_rule(options.rule)
        if options.s2_scale == 0:
            return self._on_channels(gg.CFG(options.cfg_scale))
        rule = gg.S2Guidance(
            options.cfg_scale,
            options.s2_scale,
            num_dropped=options.num_dropped,
            num_masks=options.num_masks,
            window=options.window,
        )
        # The whole stack is known here: too many blocks are an error at once.
        gg.drop.FixedCount(options.num_dropped, (0,)).check(self.model.num_blocks)
        return self._on_channels(rule)

    def named_rule(self, words: Sequence[str]) -> gg.GuidanceRule:
        """The rule of a name and options, checked against the model.

        Raises:
            ValueError: for an unknown name or option, or blocks or a perturbation that
                the model does not have.
        """
        middle = self.model.num_blocks // 2
        defaults = {
            "scale": self.run.guidance.cfg_scale,
            "blocks": (middle,),
            "distribution": (middle,),
        }
        rule = parse_rule(words, defaults)
        self.passes(rule)  # raises before anything is drawn
        return self._on_channels(rule)

    def _on_channels(self, rule: gg.GuidanceRule) -> gg.GuidanceRule:
        """A rule on the channels that are guided, never those of a variance."""
        channels = self.run.pipeline.sample_shape[-1]
        asked = self.run.guidance.guided_channels
        guided = channels if asked is None else asked
        if not 1 <= guided <= channels:
            raise ValueError(
                f"guided_channels must be in 1..{channels} for this model, got "
                f"{guided}."
            )
        learned = getattr(self.solver, "variance", None) == "learned"
        return gg.GuidedChannels(rule, guided) if guided < channels or learned else rule

    def passes(self, rule: gg.GuidanceRule) -> float:
        """Expected forward passes of the model for each sample under a rule."""
        cost = gg.expected_cost(rule, self.schedule, self.model, solver=self.solver)
        return cost.shared

    def sampler(self, rule: gg.GuidanceRule, batch_size: int) -> MeshSampler:
        """A sampler under a rule. Raises as ``MeshSampler``."""
        return MeshSampler(
            self.run.pipeline.denoiser(self.model, self.solver),
            self.mesh,
            key=key_of_seed(self.run.draw.seed),
            guidance=rule,
            schedule=self.schedule,
            solver=self.solver,
            batch_size=batch_size,
            decoder=self.decoder,
        )


def _of_size(checkpoint: Checkpoint, size: str | None) -> Checkpoint:
    """The checkpoint for images of a size, ``"1024x768"``."""
    if size is None:
        return checkpoint
    config = checkpoint.config
    if not hasattr(config, "for_image"):
        raise ValueError(
            f"--size is for models of prompts, but {checkpoint.family.name} draws the "
            f"size of its weights; leave it out."
        )
    width, height = map(int, size.split("x"))
    return dataclasses.replace(checkpoint, config=config.for_image(height, width))


def _check_condition(pipeline: Pipeline, draw: DrawOptions) -> None:
    """Refuse labels for a model of prompts, and prompts for one of labels."""
    if pipeline.condition == "labels":
        if draw.prompts is not None:
            raise ValueError(
                f"--prompts is for models of prompts, but this one has classes "
                f"({pipeline.title}); use --labels."
            )
    elif draw.labels not in (None, "all"):
        raise ValueError(
            f"--labels is for models of classes, but this one has prompts "
            f"({pipeline.title}); use --prompts with a file of embed-prompts."
        )
    elif draw.prompts is None:
        raise ValueError(
            f"this model needs --prompts ({pipeline.title}); embed them by full-models "
            f"embed-prompts."
        )


def _completed(options: Options, defaults: dict[str, Any]) -> Options:
    """The options with the defaults of a model in place of ``None``."""
    missing = {
        name: value
        for name, value in defaults.items()
        if getattr(options, name, ...) is None
    }
    return dataclasses.replace(options, **missing)  # type: ignore[type-var]
