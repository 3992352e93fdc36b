"""A backbone of three kinds of blocks, whose state is two arrays, as SD3's.

Joint blocks mix image and text tokens, image blocks change the image alone by wider
matrices, the last block reads the text and leaves it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

TOKENS, TEXT, WIDTH, LABELS = 4, 3, 8, 3


def joint(p, image, text, condition):
    both = jnp.concatenate([image @ p["image"], text @ p["text"]], axis=1)
    weights = jax.nn.softmax(both @ both.swapaxes(1, 2) / np.sqrt(WIDTH))
    mixed = weights @ both + condition[:, None]
    return image + mixed[:, :TOKENS], text + mixed[:, TOKENS:]


def image_only(p, image, text, condition):
    return image + jnp.tanh(image @ p["in"] + p["bias"]) @ p["out"], text


def last(p, image, text, condition):
    read = jnp.tanh(text.mean(axis=1) @ p["text"] + condition)
    return image + jnp.tanh(image @ p["image"]) + read[:, None], text


KINDS = {
    joint: {"image": (WIDTH, WIDTH), "text": (WIDTH, WIDTH)},
    image_only: {
        "in": (WIDTH, 2 * WIDTH),
        "bias": (1, 1, 2 * WIDTH),
        "out": (2 * WIDTH, WIDTH),
    },
    last: {"image": (WIDTH, WIDTH), "text": (WIDTH, WIDTH)},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OddNetwork:
    """Samples ``[n, 4, 2]``; parameters stacked for each segment of one kind."""

    stacks: tuple
    texts: jax.Array
    enter: jax.Array
    leave: jax.Array
    kinds: tuple = dataclasses.field(metadata={"static": True})

    sample_shape = (TOKENS, 2)
    num_labels = LABELS

    @classmethod
    def random(cls, sizes=(2, 3, 1), seed=0):
        rng = np.random.default_rng(seed)

        def draw(*shape):
            scale = 1 / np.sqrt(shape[-2])
            return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

        stacks = tuple(
            {name: draw(size, *shape) for name, shape in shapes.items()}
            for size, shapes in zip(sizes, KINDS.values(), strict=True)
        )
        texts = draw(LABELS + 1, TEXT, WIDTH)
        return cls(stacks, texts, draw(2, WIDTH), draw(WIDTH, 2), tuple(KINDS))

    def without(self, dropped):
        """The network of the other blocks; a segment may vanish."""
        stacks, kinds, start = [], [], 0
        for stack, kind, size in zip(
            self.stacks, self.kinds, self.segments, strict=True
        ):
            kept = [i for i in range(size) if start + i not in dropped]
            start += size
            if kept:
                stacks.append(jax.tree.map(lambda a, i=np.array(kept): a[i], stack))
                kinds.append(kind)
        return dataclasses.replace(self, stacks=tuple(stacks), kinds=tuple(kinds))

    @property
    def segments(self):
        return tuple(jax.tree.leaves(stack)[0].shape[0] for stack in self.stacks)

    @property
    def num_blocks(self):
        return sum(self.segments)

    def embed(self, x_t, time, label):
        if label is None:
            label = jnp.full(x_t.shape[:1], LABELS)
        phase = time[:, None] * jnp.arange(1.0, WIDTH + 1)[None]
        return (x_t @ self.enter, self.texts[label]), jnp.sin(phase)

    def segment_block(self, segment, index, hidden, context):
        chosen = jax.tree.map(lambda a: a[index], self.stacks[segment])
        return self.kinds[segment](chosen, *hidden, context)

    def readout(self, hidden, context):
        return hidden[0] @ self.leave
