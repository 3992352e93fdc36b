"""The names of ImageNet's classes."""

from __future__ import annotations

import difflib
import functools
import re
from importlib import resources


@functools.cache
def imagenet_names() -> tuple[tuple[str, ...], ...]:
    """Names of the 1,000 classes of ILSVRC 2012, synonyms of each in their order."""
    folder = resources.files("full_models.models.dit")
    text = folder.joinpath("imagenet_classes.txt").read_text()
    return tuple(tuple(line.split(", ")) for line in text.splitlines())


def imagenet_labels(name: str) -> tuple[int, ...]:
    """The class of a name, or the classes with its words in one of their names.

    A name is any synonym of a single class, in upper or lower case. ``"corgi"`` is no
    name, but a word of two: Pembroke Welsh corgi and Cardigan Welsh corgi.

    Raises:
        ValueError: if the name is unknown (with the nearest ones), or if several
            classes share it (with their numbers).
    """
    known = _by_name()
    found = known.get(name.lower(), ())
    if not found and (by_word := _by_words(name.lower().split())):
        return by_word
    if not found:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"no class of ImageNet is called {name!r}.{hint}")
    if len(found) > 1:
        raise ValueError(
            f"{name!r} is the name of several classes, {', '.join(map(str, found))}; "
            f"give the number."
        )
    return found


def _by_words(words: list[str]) -> tuple[int, ...]:
    """Classes with all of the words, one after the other, in one of their names."""
    pattern = re.compile(rf"(?<!\w){'[ -]'.join(map(re.escape, words))}(?!\w)")
    return tuple(
        label
        for label, names in enumerate(imagenet_names())
        if words and any(pattern.search(name.lower()) for name in names)
    )


@functools.cache
def _by_name() -> dict[str, tuple[int, ...]]:
    """Classes by lower-case name: a first name counts before others' synonyms."""
    every: dict[str, list[int]] = {}
    first: dict[str, list[int]] = {}
    for label, names in enumerate(imagenet_names()):
        for name in dict.fromkeys(n.lower() for n in names):
            every.setdefault(name, []).append(label)
        first.setdefault(names[0].lower(), []).append(label)
    return {name: tuple(first.get(name, found)) for name, found in every.items()}
