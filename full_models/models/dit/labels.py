"""ImageNet's classes by number or name."""

from __future__ import annotations

import difflib
import functools
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def imagenet_names() -> tuple[tuple[str, ...], ...]:
    """Names of the 1,000 classes of ILSVRC 2012, synonyms of each in their order."""
    text = (
        resources.files("full_models.models.dit")
        .joinpath("imagenet_classes.txt")
        .read_text()
    )
    return tuple(tuple(line.split(", ")) for line in text.splitlines())


def parse_labels(text: str, num_labels: int) -> tuple[int, ...]:
    """Class numbers from a list of numbers or names, separated by commas.

    Args:
        text: ``"207,360"``, ``"golden retriever, otter"``, or a mixture. A name may be
            any synonym, in any case, of a single class.
        num_labels: how many classes the model has; names are known for 1,000 only.

    Raises:
        ValueError: for a number out of range, or a name that is unknown (with the
            nearest ones) or that several classes share (with their numbers).
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(
            f"labels must be class numbers or names separated by commas, got {text!r}."
        )
    return tuple(_label(part, num_labels) for part in parts)


def labels_of(text: str, num: int, num_labels: int, seed: int) -> np.ndarray:
    """The label of each of ``num`` samples, int32; a sample's depends on its index.

    Args:
        text: classes as in ``parse_labels``, taken in turn; ``"all"`` takes every class
            of the model in turn, ``"random"`` draws each independently.
        num: how many.
        num_labels: how many classes the model has.
        seed: of random labels.

    Raises:
        ValueError: as ``parse_labels``.
    """
    if text == "random":
        key = jax.random.fold_in(jax.random.key(seed), 0x1ABE1)

        def draw(index: jax.Array) -> jax.Array:
            return jax.random.randint(jax.random.fold_in(key, index), (), 0, num_labels)

        indices = jnp.arange(num, dtype=jnp.uint32)
        return np.asarray(jax.jit(jax.vmap(draw))(indices), np.int32)
    in_turn = range(num_labels) if text == "all" else parse_labels(text, num_labels)
    return np.resize(np.asarray(in_turn, np.int32), num)


def label_name(label: int, num_labels: int) -> str:
    """The first name of a class where names are known, else its number."""
    if num_labels == 1000 and 0 <= label < 1000:
        return imagenet_names()[label][0]
    return str(label)


def _label(part: str, num_labels: int) -> int:
    try:
        number = int(part)
    except ValueError:
        return _by_name(part, num_labels)
    if not 0 <= number < num_labels:
        raise ValueError(
            f"labels must be in 0..{num_labels - 1} for this model, got {number}."
        )
    return number


def _by_name(name: str, num_labels: int) -> int:
    if num_labels != 1000:
        raise ValueError(
            f"labels of this model must be numbers in 0..{num_labels - 1}, got "
            f"{name!r}; names are known for ImageNet's 1,000 classes only."
        )
    known = _names()
    found = known.get(name.lower(), ())
    if not found:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"no class of ImageNet is called {name!r}.{hint}")
    if len(found) > 1:
        raise ValueError(
            f"{name!r} is the name of several classes, {', '.join(map(str, found))}; "
            f"give the number."
        )
    return found[0]


@functools.cache
def _names() -> dict[str, tuple[int, ...]]:
    """Classes by lower-case name: a first name counts before others' synonyms."""
    every: dict[str, list[int]] = {}
    first: dict[str, list[int]] = {}
    for label, names in enumerate(imagenet_names()):
        for name in dict.fromkeys(n.lower() for n in names):
            every.setdefault(name, []).append(label)
        first.setdefault(names[0].lower(), []).append(label)
    return {name: tuple(first.get(name, found)) for name, found in every.items()}
