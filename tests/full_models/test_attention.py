"""Attention: its implementations against a plain formula and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from full_models.models.attention import attention


def operands(tokens, keys, heads=2, features=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, tokens, heads, features)] + 2 * [(2, keys, heads, features)]
    return [jnp.asarray(2.0 * rng.normal(size=shape), dtype) for shape in shapes]


def by_formula(query, key, value, lengths):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    logits = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    counts = np.arange(key.shape[1]) < np.asarray(lengths)[:, None, None, None]
    weights = np.where(counts, np.exp(logits), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhqk,nkhd->nqhd", weights, value)


@pytest.mark.parametrize("implementation", ["full", "chunked"])
@pytest.mark.parametrize("tokens, keys", [(5, 7), (1025, 9)])
def test_it_is_the_formula(implementation, tokens, keys):
    arrays = operands(tokens, keys)
    everything = jnp.full(2, keys)
    wanted = by_formula(*arrays, everything)
    found = attention(*arrays, implementation=implementation)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    lengths = jnp.array([3, keys])
    wanted = by_formula(*arrays, lengths)
    found = attention(*arrays, lengths=lengths, implementation=implementation)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def largest(jaxpr):
    """Elements of the largest array that a program makes."""
    sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                sizes.append(largest(getattr(value, "jaxpr", value)))
    return max(sizes)


def test_at_the_size_of_sd3_no_square_of_tokens_is_written():
    tokens, heads = 4096 + 333, 2
    arrays = [jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.bfloat16)] * 3
    made = {
        name: largest(
            jax.make_jaxpr(lambda *a, name=name: attention(*a, implementation=name))(
                *arrays
            ).jaxpr
        )
        for name in ("auto", "full")
    }
    assert made["full"] >= heads * tokens**2
    assert made["auto"] <= heads * tokens * 512


def test_narrow_operands_keep_a_float32_softmax():
    arrays = operands(600, 600, dtype=jnp.bfloat16)
    wanted = by_formula(*arrays, jnp.full(2, 600))
    found = attention(*arrays, implementation="chunked")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=0, atol=0.03)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="one of auto, full, chunked, cudnn, got 'f'"):
        attention(*operands(2, 2), implementation="f")
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="needs an NVIDIA GPU, got cpu"):
            attention(*operands(2, 2), implementation="cudnn")
