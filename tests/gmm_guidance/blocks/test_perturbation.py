"""Perturbations of blocks: what each does, on a small transformer and a small DiT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.block_networks import random_network

import gmm_guidance as gg
from gmm_guidance import Pass, Perturbation, evaluate_passes
from gmm_guidance.blocks.perturbation import (
    ATTENTION_KINDS,
    BlockPerturbation,
    perturbed_attention,
    shuffled,
)

L, N, TOKENS = 12, 3, 4
KINDS = sorted({"drop", *ATTENTION_KINDS})
OFF = {kind: 1.0 if kind == "temper" else 0.0 for kind in KINDS}


@functools.cache
def network():
    config = gg.NetworkConfig(TOKENS, 2, 8, L, block="attention")
    stack = gg.BlockMLP(config, rngs=nnx.Rngs(jax.random.key(0))).as_stack()
    return jax.tree.map(lambda a: 1.5 * a, stack)


X = jnp.asarray(np.random.default_rng(0).normal(size=(N, TOKENS)), jnp.float32)
LABEL, SIGMA = jnp.array([0, 1, 1], jnp.int32), jnp.asarray(0.5, jnp.float32)


def perturbations(blocks, amounts, key):
    """One of each kind, full where the amount of a kind is absent."""
    return [
        Perturbation(kind, blocks, amounts.get(kind), key) for kind in sorted(KINDS)
    ]


@jax.jit
def together(stack, blocks, amounts, key):
    """Rows: unconditional, conditional, one of each kind."""
    weak = (Pass(LABEL, perturb=p) for p in perturbations(blocks, amounts, key))
    return evaluate_passes(stack, X, SIGMA, (Pass(None), Pass(LABEL), *weak))


def all_kinds(blocks, amounts, seed=0):
    blocks = jnp.asarray([*blocks, *[L] * (2 - len(blocks))], jnp.int32)
    amounts = {k: jnp.asarray(v, jnp.float32) for k, v in amounts.items()}
    uncond, cond, *weak = together(network(), blocks, amounts, jax.random.key(seed))
    return uncond, cond, dict(zip(KINDS, weak, strict=True))


@functools.cache
def plain():
    """The full rows without a weak row beside them."""
    run = jax.jit(lambda s: evaluate_passes(s, X, SIGMA, (Pass(None), Pass(LABEL))))
    return run(network())


def test_a_softly_dropped_block_of_any_network():
    """Bit for bit the full pass at 0, half of the block's own part at 1/2."""
    mlp = random_network(num_blocks=3)
    x, blocks = X[:, :2], jnp.array([1], jnp.int32)

    @jax.jit
    def run(amount):
        soft = Pass(LABEL, perturb=Perturbation("drop", blocks, amount))
        passes = (Pass(LABEL), soft, Pass(LABEL, blocks))
        return evaluate_passes(mlp, x, SIGMA, passes)

    cond, none, dropped = run(jnp.float32(0.0))
    np.testing.assert_array_equal(none, cond)
    np.testing.assert_array_equal(cond, jax.jit(mlp.__call__)(x, SIGMA, LABEL))
    np.testing.assert_allclose(run(jnp.float32(1.0))[1], dropped, rtol=1e-5, atol=1e-5)
    assert np.abs(run(jnp.float32(0.5))[1] - cond).max() > 1e-3
    np.testing.assert_array_equal(run(jnp.float32(0.5))[0], cond)


@pytest.mark.ci
def test_an_amount_of_zero_is_the_conditional_pass_bit_for_bit():
    uncond, cond, weak = all_kinds([1, 10], OFF)
    np.testing.assert_array_equal(uncond, plain()[0])
    np.testing.assert_array_equal(cond, plain()[1])
    for kind, row in weak.items():
        np.testing.assert_array_equal(row, cond, err_msg=kind)


@pytest.mark.ci
def test_an_empty_set_is_the_conditional_pass_and_any_set_leaves_the_plain_rows():
    for blocks in ([], [0], [L - 1]):
        uncond, cond, weak = all_kinds(blocks, {})
        np.testing.assert_array_equal(uncond, plain()[0])
        np.testing.assert_array_equal(cond, plain()[1])
        for kind, row in weak.items():
            same = bool((row == cond).all())
            assert same == (not blocks), kind


@pytest.mark.ci
def test_every_choice_of_blocks_acts_and_block_1_is_not_block_10():
    found = {tuple(b): all_kinds(b, {})[2] for b in ([1], [10], [1, 10])}
    for kind in KINDS:
        one, ten, both = (found[b][kind] for b in ((1,), (10,), (1, 10)))
        for a, b in ((one, ten), (one, both), (ten, both)):
            assert np.abs(a - b).max() > 1e-4, kind


@pytest.mark.ci
def test_shared_rows_are_separate_rows_and_one_program_serves_all():
    """To rounding: attention rows alone differ in last bits, without weak rows too."""

    @functools.partial(jax.jit, static_argnums=0)
    def alone(kind, stack, blocks, key):
        weak = Pass(LABEL, perturb=Perturbation(kind, blocks, None, key))
        return evaluate_passes(stack, X, SIGMA, (weak,))[0]

    weak = all_kinds([3, 7], {})[2]
    blocks = jnp.array([3, 7], jnp.int32)
    for kind in ("identity", "shuffle"):
        row = alone(kind, network(), blocks, jax.random.key(0))
        np.testing.assert_allclose(row, weak[kind], rtol=1e-5, atol=1e-6, err_msg=kind)
    assert together._cache_size() <= 2  # with amounts and without


def edited(stack, block, change):
    """The stack with the parameters of one block changed by hand."""
    backbone = nnx.clone(stack.backbone)
    backbone.blocks = change(backbone.blocks, block)
    return gg.ProcessStack(backbone, stack.process, stack.prediction)


@jax.jit
def run_alone(stack):
    return evaluate_passes(stack, X, SIGMA, (Pass(LABEL),))[0]


def without_output(*layers):
    def change(blocks, block):
        for name in layers:
            layer = functools.reduce(getattr, name.split("."), blocks)
            for param in (layer.kernel, layer.bias):
                param[...] = param[...].at[block].set(0.0)
        return blocks

    return change


@pytest.mark.ci
def test_a_branch_left_out_is_a_network_with_that_branch_zeroed():
    weak = all_kinds([4], {})[2]
    for kind, layers in {
        "drop_attention": ("attention.out",),
        "drop_mlp": ("outer",),
        "drop": ("attention.out", "outer"),
    }.items():
        hand = edited(network(), 4, without_output(*layers))
        wanted = run_alone(hand)
        np.testing.assert_allclose(weak[kind], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.ci
def test_sets_by_sample_are_those_of_each_sample():
    sets = jnp.array([[1], [5], [L]])  # the last sample is not perturbed

    @jax.jit
    def run(stack, blocks):
        weak = Pass(LABEL, perturb=Perturbation("identity", blocks))
        return evaluate_passes(stack, X, SIGMA, (Pass(LABEL), weak))

    cond, weak = run(network(), sets)
    for sample, block in enumerate((1, 5)):
        whole = all_kinds([block], {})[2]["identity"]
        np.testing.assert_array_equal(weak[sample], whole[sample])
    np.testing.assert_array_equal(weak[2], cond[2])


# --- attention alone


def heads(tokens=6, seed=1, spread=1.0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(2, tokens, 2, 3)).astype(np.float32) for _ in range(3))
    return jnp.asarray(spread * q), jnp.asarray(k), jnp.asarray(v)


def attend(q, k, v):
    """Softmax attention without its usual factor."""
    logits = jnp.einsum("nqhd,nkhd->nhqk", q, k)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits), v)


def perturbed(kind, amount=None, operands=None, grid=()):
    perturb = BlockPerturbation(kind, amount)
    return perturbed_attention(attend, *(operands or heads()), perturb, grid)


def test_identity_is_the_limit_of_sharp_codes_and_keeps_constant_tokens():
    codes = jnp.broadcast_to(jnp.eye(6)[None, :, None], (2, 6, 2, 6))
    values = heads()[2]
    gaps = [
        np.abs(attend(beta * codes, codes, values) - perturbed("identity")).max()
        for beta in (5.0, 10.0, 20.0)
    ]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-6
    q, k, v = heads()
    same = jnp.broadcast_to(v[:, :1], v.shape)
    np.testing.assert_allclose(
        perturbed("identity", operands=(q, k, same)), attend(q, k, same), atol=1e-6
    )


def test_a_part_of_the_identity_is_linear():
    plain, full = attend(*heads()), perturbed("identity")
    half = perturbed("identity", 0.5)
    np.testing.assert_allclose(half - plain, 0.5 * (full - plain), atol=1e-6)


def test_blurred_queries_lead_to_the_mean_query_without_a_jump():
    full = perturbed("blur")
    assert np.ptp(full, axis=1).max() < 1e-6  # all tokens get the same
    np.testing.assert_allclose(perturbed("blur", 1.0), full, atol=1e-6)
    gaps = [
        np.abs(perturbed("grid_blur", sigma, grid=(3, 2)) - full).max()
        for sigma in (1.0, 10.0, 100.0)
    ]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-3
    np.testing.assert_array_equal(
        perturbed("grid_blur", 0.0, grid=(2, 3)), attend(*heads())
    )


def test_a_blur_of_the_grid_is_that_of_scipy_in_its_interior():
    from scipy.ndimage import gaussian_filter

    q, k, v = (
        jnp.asarray(np.random.default_rng(2).normal(size=(1, 27 * 21, 1, 1)), "float32")
        for _ in range(3)
    )
    seen = perturbed_attention(
        lambda q, k, v: q, q, k, v, BlockPerturbation("grid_blur", 1.2), (27, 21)
    )
    wanted = gaussian_filter(
        np.asarray(q, float).reshape(27, 21), 1.2, truncate=8, mode="constant"
    )
    seen = np.asarray(seen).reshape(27, 21)
    np.testing.assert_allclose(seen[8:-8, 8:-8], wanted[8:-8, 8:-8], atol=1e-5)


def test_tempering_is_blurring_for_centered_queries_only():
    q, k, v = heads()
    centered = q - q.mean(axis=1, keepdims=True)
    for operands, equal in (((centered, k, v), True), ((q, k, v), False)):
        gap = np.abs(
            perturbed("temper", 0.3, operands) - perturbed("blur", 0.7, operands)
        ).max()
        assert (gap < 1e-6) == equal
    uniform = jnp.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    np.testing.assert_allclose(perturbed("temper"), uniform, atol=1e-6)


def test_a_shuffle_permutes_and_depends_on_its_key_alone():
    tokens = jnp.arange(40.0).reshape(2, 20, 1)

    def order(seed, count=2):
        perturb = BlockPerturbation("shuffle", None, jax.random.key(seed))
        return np.asarray(shuffled(tokens[:count], perturb))[..., 0].astype(int)

    assert (np.sort(order(0)) == np.arange(40).reshape(2, 20)).all()
    assert (order(0)[1] == order(0)[0] + 20).all()  # the same for all samples
    assert (order(0, 1)[0] == order(0)[0]).all()  # for any number of them
    assert (order(0) != order(1)).any()


# --- refusals and costs


def test_a_kind_that_the_blocks_lack_is_refused_naming_both():
    mlp = random_network(num_blocks=3)
    rule = gg.PAG(2.0, (1,))
    with pytest.raises(ValueError, match=r"BlockMLP.*'identity'.*they have drop\."):
        gg.guided_denoise(mlp, rule, jnp.zeros((1, 2)), 1.0, 0)
    schedule = gg.Karras(4)
    with pytest.raises(ValueError, match="'identity'"):
        gg.expected_cost(rule, schedule, mlp)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Pass(None, jnp.array([1]), None, Perturbation("drop", 1)), "not both"),
        (lambda: Perturbation("shuffle", jnp.array([1])), "random key"),
        (lambda: Perturbation("identity", jnp.array([1]), 1.5), r"in \[0, 1\]"),
        (lambda: Perturbation("temper", jnp.array([1]), -0.5), ">= 0"),
    ],
)
def test_input_is_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_costs_count_what_each_kind_saves():
    schedule, stack, early = gg.Karras(10), network(), tuple(range(8, L))
    cfg = gg.expected_cost(gg.CFG(2.0), schedule, stack, solver="euler")

    def extra(rule):
        cost = gg.expected_cost(rule, schedule, stack, solver="euler")
        return (cost.shared - cfg.shared) / 10, (cost.separate - cfg.separate) / 10

    saved = stack.perturbation_savings
    # Width 8, 4 tokens: queries, keys 16, map 8, values and output 16, MLP 16,
    # condition 2.
    assert saved["identity"] == pytest.approx(24 / 58)
    assert saved["drop_attention"] == pytest.approx(40 / 58)
    part = saved["identity"] / L
    assert extra(gg.PAG(2.0, (3,))) == pytest.approx((9 / L - part, 1 - part))
    assert extra(gg.SEG(2.0, (3,))) == pytest.approx((9 / L, 1.0))
    assert extra(gg.STG(2.0, (3,))) == pytest.approx((8 / L, 11 / L))
    assert extra(gg.STG(2.0, early)) == pytest.approx((0.0, 8 / L))
    weak = gg.WeakUnconditional(2.0, gg.drop.FixedBlocks((8, 9)))
    assert extra(weak) == pytest.approx((-2 / L, -2 / L))
    soft = gg.PAG(2.0, (3,), amount=0.5)
    assert extra(soft) == pytest.approx((9 / L, 1.0))
    everywhere = gg.S2Guidance(2.0, window=None, kind="blur")
    assert extra(everywhere)[0] == pytest.approx(0.5)
