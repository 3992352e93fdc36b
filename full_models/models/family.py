"""What a family of models declares: its config, its weights and how it is sampled.

A family is a folder with the files ``config``, ``network``, ``weights`` and
``pipeline`` and one ``Family``, which the registry lists. Nothing else in the package
knows a family by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax

from full_models.weights.table import Stored, Table
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.sampling.solvers import Solver
from gmm_guidance.sharding import PathRules

DType = Literal["float32", "bfloat16"]


class Inferred(NamedTuple):
    """What a file says of the config of its model.

    Attributes:
        fields: fields of the config that the file determines.
        defaults: fields that hold unless the caller knows better.
    """

    fields: dict[str, Any]
    defaults: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the layouts in which files store the parameters of a family.

    Attributes:
        signature: regular expression found in the name of some tensor of each file of
            this layout, and of no file of another family or layout.
        table: of a config and the stored tensors (empty when exporting): the table of
            the parameters.
        infer: of the stored tensors and the content of the ``config.json`` next to them
            (``None`` without one, or if ``has_config`` is false): what they say of the
            config. It raises ``ValueError`` if the family cannot express it.
        has_config: whether a ``config.json`` belongs to the layout.
        to_config: content of that ``config.json`` for a config. With it the layout is
            exported as a folder, without it as a single file.
        ignored: how the names of tensors of other models in the same file begin.
    """

    signature: str
    table: Callable[[Any, Stored], Table]
    infer: Callable[[Stored, Any], Inferred]
    has_config: bool = False
    to_config: Callable[[Any], dict[str, Any]] | None = None
    ignored: tuple[str, ...] = ()

    def select(self, stored: Stored, origin: str) -> Stored | None:
        """The tensors of this layout under their own names; ``None`` if it is none.

        What stands before the names of the layout (``module.``, ``net.``) is dropped,
        with the tensors that do not share it.

        Raises:
            ValueError: if models with several such prefixes are in the file.
        """
        kept = {n: t for n, t in stored.items() if not n.startswith(self.ignored)}
        signature = re.compile(self.signature.replace("^", r"(?:^|(?<=\.))"))
        starts = {n[: m.start()] for n in kept if (m := signature.search(n))}
        prefixes = {start if start.endswith(".") else "" for start in starts}
        if not prefixes:
            return None
        if "" in prefixes:
            return kept
        if len(prefixes) > 1:
            raise ValueError(
                f"{origin} holds several models, under {', '.join(sorted(prefixes))}; "
                f"choose one, such as root={min(prefixes)!r}."
            )
        (prefix,) = prefixes
        below = {n: t for n, t in stored.items() if n.startswith(prefix)}
        below = {n.removeprefix(prefix): t for n, t in below.items()}
        return {n: t for n, t in below.items() if not n.startswith(self.ignored)}


class Pipeline(Protocol):
    """How a model is sampled, as far as its config tells; nothing is loaded for it."""

    @property
    def title(self) -> str:
        """The model in a few words, for the terminal."""
        ...

    @property
    def condition(self) -> Literal["labels", "prompts"]:
        """What the model is conditioned on."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, channels last."""
        ...

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths in pixels that it draws."""
        ...

    @property
    def defaults(self) -> Defaults:
        """The options of a run that the family recommends."""
        ...

    def schedule(self, steps: int, solver: str | Solver = "euler") -> Schedule:
        """The noise levels of a run with a solver."""
        ...

    def solver(self, name: str) -> str | Solver:
        """The solver of a name; it raises ``ValueError`` if the model has none."""
        ...

    def denoiser(self, model: Any, solver: str | Solver) -> Any:
        """The model as the solver needs it, such as with its variance channels."""
        ...

    def labels_of(self, name: str) -> tuple[int, ...]:
        """The labels of a name; it raises ``ValueError`` for an unknown one."""
        ...

    def label_name(self, label: int) -> str:
        """The name of a label, or its number."""
        ...


class Defaults(NamedTuple):
    """Options of a run.

    Attributes:
        steps: number of steps of the solver.
        solver: its name.
        cfg_scale: total CFG scale.
        s2_scale: weight of the S² term.
        window: fractions of the steps between which it acts.
        labels: labels of a few samples, see ``choose_labels``.
    """

    steps: int = 50
    solver: str = "euler"
    cfg_scale: float = 4.0
    s2_scale: float = 0.25
    window: tuple[float, float] = (0.1, 0.9)
    labels: str = "all"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: its name in messages and in files of our own layouts.
        config: dataclass of the shape of a model, with its ``process`` and
            ``prediction``.
        build: makes the ``Backbone`` of a config, with random parameters.
        layouts: by name; the first is the default of an export.
        published: fields of the config that the name of a published model stands for.
        pipeline: of a config: how its models are sampled.
        execution: fields of the config that no file of weights decides.
        placement: how parameters are divided over a mesh, by their paths.
        subfolder: folder of its weights inside the folder of a diffusers pipeline.
        refuse: raises ``ValueError`` for a path at which weights of another model have
            the tensors of this family.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], Any]
    layouts: Mapping[str, Layout]
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    pipeline: Callable[[Any], Pipeline] | None = None
    execution: tuple[str, ...] = ("compute_dtype",)
    placement: PathRules = ()
    subfolder: str = "transformer"
    refuse: Callable[[Path], None] = lambda path: None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["backbone"],
    meta_fields=["process", "prediction", "return_variance"],
)
@dataclasses.dataclass(frozen=True)
class PromptStack(ProcessStack):
    """A ``ProcessStack`` of a network whose labels are prompts."""

    def with_prompts(self, prompts: Any) -> PromptStack:
        """The model with these prompts as its labels; parameters are shared.

        Args:
            prompts: states of the text encoder, see ``with_prompts`` of the network.

        Raises:
            ValueError: if they are not of the encoder of this model.
        """
        # Forwarded to the network, it would return the network.
        return dataclasses.replace(self, backbone=self.backbone.with_prompts(prompts))


# Larger values are of a damaged file: building the model would take all memory or time.
_MOST = {
    "depth": 1_000,
    "num_double": 1_000,
    "num_single": 1_000,
    "layers_per_block": 100,
    "input_size": 8_192,
}
_MOST_ELSE = 1_000_000


def check_counts(config: Any, names: Iterable[str]) -> None:
    """Refuse fields of a config that are no whole numbers of a plausible size.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        value, most = getattr(config, name), _MOST.get(name, _MOST_ELSE)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(
                f"{name} must be a whole number of 1 to {most:,}, got {value!r:.40}."
            )


def as_stack(backbone: Any) -> ProcessStack:
    """A network of some family as a ``Denoiser`` and ``BlockStack``.

    A network with prompts becomes one with ``with_prompts``.
    """
    config = backbone.config
    kind = PromptStack if hasattr(backbone, "with_prompts") else ProcessStack
    return kind(backbone, config.process, config.prediction)


def unknown_name(name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name of a model, with the nearest known one."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown model {name!r}.{hint} Known: {', '.join(known)}.")
