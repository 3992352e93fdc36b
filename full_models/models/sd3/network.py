"""``SD3``: the multimodal transformer of SD3 and SD3.5, as a backbone of blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from full_models.models.joint import (
    STEPS,
    JointBlock,
    PromptedNetwork,
    chosen,
    joint_savings,
    stacked,
)
from full_models.models.layers import (
    XAVIER,
    FinalLayer,
    Linear,
    from_patches,
    to_patches,
)
from full_models.models.sd3.config import SD3Config
from full_models.models.sd3.pipeline import SD3Pipeline
from gmm_guidance.blocks.perturbation import JOINT_KINDS, BlockPerturbation

_TEXT_LENGTH = 333  # tokens of a prompt in diffusers' pipeline: 77 of CLIP, 256 of T5


class SD3(PromptedNetwork):
    """The multimodal diffusion transformer of SD3 and SD3.5.

    Esser et al. 2024 (arXiv 2403.03206). A ``Backbone`` of ``gmm_guidance``, which
    ``as_stack`` makes a ``Denoiser`` and ``BlockStack``; labels are the prompts of
    ``with_prompts``. Samples are latents ``[n, H, W, C]``, channels last. Blocks with
    dual attention come first, then joint ones, then one in which the text ends;
    parameters of each kind are stacked on their leading axis. A dropped block leaves
    both streams as they are.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: SD3Config, *, rngs: nnx.Rngs):
        c = self.config = config
        pixels = c.patch_size**2 * c.in_channels
        self.patches = Linear(
            pixels, c.width, dtype=c.compute_dtype, kernel_init=XAVIER, rngs=rngs
        )
        # As stored: the published tables follow no formula that all codes agree on.
        self.positions = nnx.Param(jnp.zeros((c.table_size, c.table_size, c.width)))
        self._make_text(rngs=rngs)
        dual, joint, last = self._counts
        self.dual = stacked(lambda r: JointBlock(c, "dual", rngs=r), dual, rngs)
        self.joint = stacked(lambda r: JointBlock(c, rngs=r), joint, rngs)
        self.last = stacked(lambda r: JointBlock(c, text="read", rngs=r), last, rngs)
        self.final = FinalLayer(c.width, pixels, c.compute_dtype, rngs=rngs)

    @property
    def _counts(self) -> tuple[int, int, int]:
        """Numbers of blocks of each kind."""
        c = self.config
        joint = c.depth - c.num_dual - 1
        return c.num_dual, joint, 1

    @property
    def _text_length(self) -> int:
        return _TEXT_LENGTH if self.prompts is None else self.prompts.shape[1]

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.depth

    @property
    def segments(self) -> tuple[int, ...]:
        """Numbers of equal blocks in a row."""
        return tuple(count for count in self._counts if count)

    @property
    def block_costs(self) -> tuple[float, ...]:
        """Operations of each block for one sample, two for a multiply-add."""
        d, t, s = self.config.width, self.config.num_tokens, self._text_length
        joint = 24.0 * d**2 * (t + s) + 4.0 * (t + s) ** 2 * d
        dual = joint + 8.0 * d**2 * t + 4.0 * t**2 * d
        last = 24.0 * d**2 * t + 4.0 * d**2 * s + 4.0 * t * (t + s) * d
        return tuple(np.repeat((dual, joint, last), self._counts).tolist())

    @property
    def perturbations(self) -> frozenset[str]:
        """Kinds of perturbation of the blocks."""
        return JOINT_KINDS

    @property
    def perturbation_savings(self) -> dict[str, np.ndarray]:
        """Fraction of the operations of each block that each kind saves."""
        d, t, s = self.config.width, self.config.num_tokens, self._text_length
        again = 4.0 * d**2 * t + 4.0 * t**2 * d  # maps and products of the second
        second = {
            "identity": again,
            "identity_image": again,
            "drop_attention": again + 4.0 * d**2 * t,
        }
        last = {
            "identity": 4.0 * d**2 * (t + s) + 4.0 * t * (t + s) * d,
            "identity_image": 4.0 * t**2 * d,
            "drop_attention": 8.0 * d**2 * t + 4.0 * d**2 * s + 4.0 * t * (t + s) * d,
            "drop_mlp": 16.0 * d**2 * t,
        }
        return {
            kind: np.repeat(
                (joint + second.get(kind, 0.0), joint, last[kind]), self._counts
            )
            / np.asarray(self.block_costs)
            for kind, joint in joint_savings(d, t, s).items()
        }

    @property
    def pipeline(self) -> SD3Pipeline:
        """How the model is sampled."""
        return SD3Pipeline(self.config)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        return (*self.config.input_size, self.config.in_channels)

    def embed(
        self, x_t: jax.Array, time: jax.Array, label: Any
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Image tokens ``[n, T, D]``, text ``[n, S, D]``; condition ``[n, D]``."""
        c = self.config
        tokens = self.patches(to_patches(x_t.astype(jnp.float32), c.patch_size))
        rows, columns = (side // c.patch_size for side in c.input_size)
        top, left = (c.table_size - rows) // 2, (c.table_size - columns) // 2
        center = self.positions[...][top : top + rows, left : left + columns]
        center = center.astype(jnp.float32).reshape(1, rows * columns, c.width)
        text, vector = self._text(x_t.shape[0], label)
        time = self.time(STEPS * time.astype(jnp.float32))
        return (tokens + center, text.astype(jnp.float32)), jax.nn.silu(time + vector)

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: Any,
        context: jax.Array,
        perturb: BlockPerturbation | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Both streams after block ``index`` of a segment, perhaps perturbed."""
        kinds = [b for b in (self.dual, self.joint, self.last) if b is not None]
        grid = tuple(side // self.config.patch_size for side in self.config.input_size)
        block = chosen(kinds[segment], index)
        return block(*hidden, context, perturb=perturb, grid=grid)

    def readout(self, hidden: Any, context: jax.Array) -> jax.Array:
        """The velocity ``[n, H, W, C]``."""
        c = self.config
        tokens = self.final(hidden[0], context)
        return from_patches(tokens, c.patch_size, c.input_size[0])
