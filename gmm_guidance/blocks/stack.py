"""Models made of a sequence of blocks, any of which can be dropped."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

from gmm_guidance.blocks.shared_prefix import read_rows, run_rows


@runtime_checkable
class BlockStack(Protocol):
    """A denoiser made of a sequence of residual blocks, any of which can be dropped.

    Dropping a block means that its output is its input. Parameters of the blocks are
    stacked on a leading axis and chosen by a traced index, so that every choice of
    dropped blocks runs in one compiled program. ``hidden`` and ``context`` may be any
    pytrees of arrays with leading axis ``n``.
    """

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        ...

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """The state that enters block 0, and what all blocks are conditioned on."""
        ...

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after block ``index`` (may be traced), of the same structure."""
        ...

    def readout(
        self, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
    ) -> jax.Array:
        """The denoised samples, from the state that leaves the last block."""
        ...


def run_blocks(
    model: BlockStack, x: jax.Array, sigma: jax.Array, label: Any
) -> jax.Array:
    """One plain pass through all blocks: the definition of a ``BlockStack``'s value."""
    embedded = model.embed(x, sigma, label)
    rows: Any = jax.tree.map(lambda a: a[None], embedded)
    hidden, context = run_rows(model, rows[0], rows[1])
    return read_rows(model, hidden, context, x, sigma)[0]
