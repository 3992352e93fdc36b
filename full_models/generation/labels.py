"""The label of each sample of a run."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checks import key_of_seed


def choose_labels(
    text: str,
    num: int,
    num_labels: int,
    seed: int,
    labels_of: Callable[[str], tuple[int, ...]],
) -> np.ndarray:
    """The label of each of ``num`` samples, int32; it depends on the index alone.

    Args:
        text: ``"all"``, every label of the model in turn; ``"random"``, each drawn
            independently; ``"none"``, no condition (the label ``num_labels``); or
            numbers and names separated by commas, taken in turn.
        num: number of samples.
        num_labels: number of labels of the model.
        seed: of random labels.
        labels_of: the labels of a name; it raises ``ValueError`` for an unknown one.

    Raises:
        ValueError: for a number out of range, an unknown name or an empty one.
    """
    if text == "random":
        key = jax.random.fold_in(key_of_seed(seed), 0x1ABE1)

        def draw(index: jax.Array) -> jax.Array:
            return jax.random.randint(jax.random.fold_in(key, index), (), 0, num_labels)

        indices = jnp.arange(num, dtype=jnp.uint32)
        return np.asarray(jax.jit(jax.vmap(draw))(indices), np.int32)
    if text == "none":
        return np.full(num, num_labels, np.int32)
    if text == "all":
        return np.resize(np.arange(num_labels, dtype=np.int32), num)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(
            f"--labels must be numbers or names separated by commas, got {text!r}."
        )
    labels: list[int] = []
    for part in parts:
        is_number = part.removeprefix("-").isdecimal()
        labels.extend((int(part),) if is_number else labels_of(part))
        if not 0 <= labels[-1] < num_labels:
            null = "; write none for unconditional samples"
            raise ValueError(
                f"--labels must be in 0..{num_labels - 1} for this model, got {part}"
                f"{null * (labels[-1] == num_labels)}."
            )
    return np.resize(np.asarray(labels, np.int32), num)
