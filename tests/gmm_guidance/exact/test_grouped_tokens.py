"""The exact attention toy: perturbations against closed forms of their variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmm_guidance import Pass, Perturbation, evaluate_passes
from gmm_guidance.exact import GroupedTokens

TOY = GroupedTokens()
T = TOY.sample_shape[0]
GROUPS = np.repeat(np.eye(3), 4, axis=0)
DIRECTIONS = np.array(
    [
        np.ones(T) / np.sqrt(T),
        GROUPS @ [1.0, -1.0, 0.0] / np.sqrt(8),
        np.eye(T)[0] / np.sqrt(2) - np.eye(T)[1] / np.sqrt(2),
    ]
)
SIGMAS = np.geomspace(1e-3, 1e4, 3000)
BLOCK = jnp.array([1], jnp.int32)
PERTURBED = {
    "identity": Perturbation("identity", BLOCK),
    "soft": Perturbation("identity", BLOCK, 0.3),
    "blur": Perturbation("blur", BLOCK),
    "drop_attention": Perturbation("drop_attention", BLOCK),
}


@pytest.fixture(scope="module")
def responses():
    """Eigenvalues of each denoiser in the three subspaces: ``{name: [3, S]}``."""
    x = np.repeat(DIRECTIONS, len(SIGMAS), axis=0).astype(np.float32)
    sigma = np.tile(SIGMAS, 3).astype(np.float32)
    label = jnp.full(len(x), TOY.num_labels)  # mean 0: linear

    @jax.jit
    def run(toy):
        weak = {k: Pass(label, perturb=p) for k, p in PERTURBED.items()}
        return evaluate_passes(toy, x, sigma, {"cond": Pass(label)} | weak)

    found = {k: np.asarray(v, float) for k, v in run(TOY).items()}
    return {k: (v * x).sum(1).reshape(3, -1) for k, v in found.items()}


def flow_variances(response):
    """Of the probability flow, exact below the lowest and above the highest sigma."""
    rate = 1.0 - response
    log = np.log(SIGMAS)
    integral = np.sum(0.5 * np.diff(log) * (rate[:, 1:] + rate[:, :-1]), axis=1)
    return SIGMAS[-1] ** 2 * np.exp(-2.0 * integral)


def test_the_stack_is_the_denoiser_of_the_mixture():
    rng = np.random.default_rng(0)
    x = jnp.asarray(2.0 * rng.normal(size=(5, T)), jnp.float32)
    label = jnp.array([0, 1, 1, 0, 1])
    for sigma in (0.1, 2.0):
        wanted = TOY.mixture().denoise(x, sigma, label)
        np.testing.assert_allclose(TOY(x, sigma, label), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "name, kind, amount",
    [
        ("identity", "identity", 1.0),
        ("soft", "identity", 0.3),
        ("blur", "blur", 1.0),
        ("drop_attention", "drop_attention", 1.0),
    ],
)
@pytest.mark.parametrize("window", [(0.0, np.inf), (0.3, 3.0)])
def test_variances_of_the_flow(responses, name, kind, amount, window):
    weight, cond = 0.7, responses["cond"]
    inside = (SIGMAS > window[0]) & (SIGMAS <= window[1])
    guided = cond + weight * inside * (cond - responses[name])
    wanted = TOY.variances(kind, weight, amount, window)
    tolerance = 2e-4 if np.isinf(window[1]) else 2e-2  # a step at the window's ends
    np.testing.assert_allclose(flow_variances(guided), wanted, rtol=tolerance)
    np.testing.assert_allclose(flow_variances(cond), TOY.variances(), rtol=2e-4)


def test_permuted_tokens_leave_the_mean_alone_on_average():
    """The variances of the limit of many steps, from the mean over permutations."""
    sigmas = np.geomspace(0.3, 300.0, 40)
    x = jnp.asarray(np.repeat(DIRECTIONS, len(sigmas), axis=0), jnp.float32)
    levels = jnp.asarray(np.tile(sigmas, 3), jnp.float32)
    label = jnp.full(len(x), TOY.num_labels)

    @jax.jit
    def run(key):
        shuffle = Perturbation("shuffle", jnp.array([0, 1]), None, key)
        passes = Pass(label), Pass(label, perturb=shuffle)
        return evaluate_passes(TOY, x, levels, passes)

    drawn = [run(jax.random.key(i)) for i in range(400)]
    cond, weak = (np.mean([d[i] for d in drawn], axis=0) for i in range(2))
    response = ((cond + 0.7 * (cond - weak)) * x).sum(1).reshape(3, -1)
    plain = (cond * x).sum(1).reshape(3, -1)
    gain = np.trapezoid(2.0 * (response - plain), np.log(sigmas), axis=1)
    wanted = TOY.variances("shuffle", 0.7, window=(0.3, 300.0))
    grown = np.log(np.array(wanted) / TOY.variances())
    np.testing.assert_allclose(gain, grown, atol=0.04 * grown.max())
    assert grown[0] == 0.0 and (grown[1:] > 0.5).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GroupedTokens(num_groups=1), "at least 2"),
        (lambda: GroupedTokens(within=0.0), "> 0"),
        (lambda: TOY.variances("blur", 0.7, 0.5), "amount 1"),
        (lambda: TOY.variances("temper", 0.7), "no closed form"),
        (lambda: TOY.variances("shuffle", 0.7), "ends above sigma 0"),
        (lambda: TOY.variances("shuffle", 0.7, 0.5), "amount 1"),
    ],
)
def test_input_is_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
