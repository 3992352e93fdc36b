"""Attention of all families: one function, whose memory is linear in the tokens."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Implementation = Literal["auto", "full", "chunked", "cudnn"]

_CHUNK = 512  # queries whose logits exist at a time
_FULL = 1024**2  # logits of one head that are written out at once without a second look
_CUDNN_HEADS = 128  # features of a head that cuDNN takes on all its devices


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    lengths: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Scaled dot-product attention, ``softmax(q k / sqrt(head_dim)) v``.

    Products have the type of the operands; logits and softmax are float32.

    Args:
        query: ``[n, tokens, heads, head_dim]``.
        key: ``[n, keys, heads, head_dim]``.
        value: as ``key``.
        lengths: for each sample the number of keys that count, from the first on, in
            1..keys, ``[n]`` integers; all keys by default.
        implementation: how it is computed:

            - ``"full"``: all logits at once, heads times tokens times keys;
            - ``"chunked"``: the logits of 512 queries at a time;
            - ``"cudnn"``: the fused kernel of cuDNN on NVIDIA GPUs, which writes no
              logits; for bfloat16 and float16 with heads of at most 128 features, a
              multiple of 8;
            - ``"auto"``: cuDNN where it applies, else full up to 1024 tokens, else
              chunked.

    Returns:
        ``[n, tokens, heads, head_dim]``, in the type of ``query``.

    Raises:
        ValueError: for an unknown implementation, or cuDNN where it does not apply.
    """
    if implementation not in (known := get_args(Implementation)):
        raise ValueError(
            f"attention must be one of {', '.join(known)}, got {implementation!r}."
        )
    if implementation == "auto":
        implementation = _choose(query, key)
    if implementation == "cudnn" and (obstacle := _cudnn_obstacle(query)):
        raise ValueError(
            f"attention='cudnn' needs {obstacle}; use attention='auto', which falls "
            f"back on chunks."
        )
    if lengths is not None:
        lengths = lengths.astype(jnp.int32)
    if implementation == "chunked" and query.shape[1] > _CHUNK:
        return _chunked(query, key, value, lengths)
    # JAX takes the softmax in float32, by a promotion that a strict caller forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            key_value_seq_lengths=lengths,
            implementation="cudnn" if implementation == "cudnn" else "xla",
        )


def _choose(query: jax.Array, key: jax.Array) -> Implementation:
    if not _cudnn_obstacle(query):
        return "cudnn"
    return "full" if query.shape[1] * key.shape[1] <= _FULL else "chunked"


def _cudnn_obstacle(query: jax.Array) -> str:
    """What keeps cuDNN from being used, in words; empty if nothing does."""
    features = query.shape[-1]
    if jax.default_backend() != "gpu" or not _is_nvidia():
        return f"an NVIDIA GPU, got {jax.default_backend()}"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"bfloat16 or float16 operands, got {query.dtype}"
    if features % 8 or features > _CUDNN_HEADS:
        return (
            f"heads of at most {_CUDNN_HEADS} features, a multiple of 8, got {features}"
        )
    return ""


def _is_nvidia() -> bool:
    return "cuda" in jax.devices()[0].client.platform_version.lower()


def _chunked(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array | None
) -> jax.Array:
    n, tokens, heads, features = query.shape
    chunks = -(-tokens // _CHUNK)
    # Chunks of equal size, of which the last overhangs by less than one row each.
    size = -(-tokens // chunks)
    padding = ((0, 0), (0, chunks * size - tokens), (0, 0), (0, 0))
    parts = jnp.pad(query, padding).reshape(n, chunks, size, heads, features)

    def attend(part: jax.Array) -> jax.Array:
        return attention(part, key, value, lengths=lengths, implementation="full")

    mixed = jax.lax.map(attend, jnp.moveaxis(parts, 1, 0))
    mixed = jnp.moveaxis(mixed, 0, 1).reshape(n, chunks * size, heads, features)
    return mixed[:, :tokens]
