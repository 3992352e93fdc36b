"""What a family of models declares: its config, its weights and how it is sampled.

A family is a folder with the files ``config``, ``network``, ``weights`` and
``pipeline`` and one ``Family``, which the registry lists. Nothing else in the package
knows a family by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from full_models.weights.table import Stored, Table
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
        infer: of the stored tensors and the content of the ``config.json`` beside them
            (``None`` without one, or if ``has_config`` is false): what they say of the
            config. It raises ``ValueError`` if the family cannot express it.
        has_config: whether a ``config.json`` belongs to the layout.
        to_config: content of that ``config.json`` for a config. With it the layout is
            exported as a folder, without it as a single file.
        ignored: how the names of tensors of other models in the same file begin.
        prefixes: beginnings that all names may share; they are removed.
    """

    signature: str
    table: Callable[[Any, Stored], Table]
    infer: Callable[[Stored, Any], Inferred]
    has_config: bool = False
    to_config: Callable[[Any], dict[str, Any]] | None = None
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def select(self, stored: Stored) -> Stored | None:
        """The tensors of this layout under their own names; ``None`` if it is none."""
        kept = {n: t for n, t in stored.items() if not n.startswith(self.ignored)}
        for prefix in self.prefixes:
            if kept and all(name.startswith(prefix) for name in kept):
                kept = {n.removeprefix(prefix): t for n, t in kept.items()}
                break
        return kept if any(re.search(self.signature, name) for name in kept) else None


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: its name in messages and in files of our own layouts.
        config: dataclass of the shape of a model.
        build: makes the module of a config, with random parameters.
        layouts: by name; the first is the default of an export.
        published: fields of the config that the name of a published model stands for.
        pipeline: of a config: how its models are sampled.
        execution: fields of the config that no file of weights decides.
        placement: how parameters are divided over a mesh, by their paths.
        subfolder: folder of its weights inside the folder of a diffusers pipeline.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], Any]
    layouts: Mapping[str, Layout]
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    pipeline: Callable[[Any], Any] | None = None
    execution: tuple[str, ...] = ("compute_dtype",)
    placement: PathRules = ()
    subfolder: str = "transformer"


def unknown_name(name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name of a model, with the nearest known one."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown model {name!r}.{hint} Known: {', '.join(known)}.")
