"""Draws from a mixture against its parameters, within standard errors."""

import jax
import numpy as np
import pytest
from scipy import stats

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

COUNT = 40_000


@pytest.fixture(scope="module")
def mixture():
    """Modes far apart, so that each sample tells its own; label 1 has two of them."""
    root = np.random.default_rng(0).normal(size=(3, 3, 3))
    return GaussianMixture(
        [[-20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [20.0, 0.0, 5.0]],
        root @ root.swapaxes(1, 2) + 0.1 * np.eye(3),
        [0.5, 0.2, 0.3],
        [1, 0, 1],
    )


@pytest.fixture(scope="module")
def draws(mixture):
    x, label = mixture.sample(jax.random.key(0), COUNT)
    assert x.shape == (COUNT, 3) and label.shape == (COUNT,)
    return np.asarray(x, float), np.asarray(label)


def nearest_mode(mixture, x):
    gaps = np.linalg.norm(x[:, None] - np.asarray(mixture.means), axis=2)
    return np.argmin(gaps, axis=1)


def test_modes_come_with_their_weights_and_labels(mixture, draws):
    x, label = draws
    mode = nearest_mode(mixture, x)
    np.testing.assert_array_equal(label, mixture.labels[mode])
    count = np.bincount(mode)
    wanted = np.array([0.5, 0.2, 0.3]) * COUNT
    assert (np.abs(count - wanted) < 4 * np.sqrt(wanted)).all()


def test_each_mode_is_its_gaussian(mixture, draws):
    x, _ = draws
    mode = nearest_mode(mixture, x)
    for k in range(3):
        own = x[mode == k] - np.asarray(mixture.means[k])
        covariance = np.asarray(mixture.covariances[k], float)
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), own.T)
        for row in (*whitened, whitened.sum(axis=0) / np.sqrt(3)):
            assert stats.kstest(row, "norm").pvalue > 1e-3


def test_a_condition_keeps_the_proportions_within_the_class(mixture):
    x, label = mixture.sample(jax.random.key(1), COUNT, 1)
    assert (np.asarray(label) == 1).all()
    count = np.bincount(nearest_mode(mixture, np.asarray(x)), minlength=3)
    assert count[1] == 0
    wanted = 0.5 / 0.8 * COUNT
    assert abs(count[0] - wanted) < 4 * np.sqrt(wanted * 0.3 / 0.8)


def test_one_label_for_each_sample_or_none(mixture):
    asked = np.arange(COUNT) % 3  # 2 is the null label: drawn by class probability
    x, label = mixture.sample(jax.random.key(2), COUNT, asked)
    label = np.asarray(label)
    np.testing.assert_array_equal(label[asked < 2], asked[asked < 2])
    modes = nearest_mode(mixture, np.asarray(x))
    np.testing.assert_array_equal(mixture.labels[modes], label)
    free = label[asked == 2]
    assert abs(free.mean() - 0.8) < 4 * np.sqrt(0.16 / len(free))


def test_a_longer_draw_begins_with_the_shorter(mixture, draws):
    short, label = mixture.sample(jax.random.key(0), 7)
    np.testing.assert_array_equal(short, draws[0][:7])
    np.testing.assert_array_equal(label, draws[1][:7])
    other, _ = mixture.sample(jax.random.key(4), 7)
    assert np.abs(np.asarray(other) - np.asarray(short)).min() > 0


def test_a_rare_class_is_drawn_as_finely_as_any():
    """Weights 2e-12 and 1e-12 would vanish in a cumulative sum of all weights."""
    rare = GaussianMixture(
        [[-5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]],
        np.stack([0.01 * np.eye(3)] * 3),
        [2e-12, 1 - 3e-12, 1e-12],
        [1, 0, 1],
    )
    asked = np.arange(COUNT) % 2 + 1  # the rare class, and none
    x, label = map(np.asarray, rare.sample(jax.random.key(0), COUNT, asked))
    own = asked == 1
    assert (label == own).all()
    share, count = np.mean(x[own, 0] < 0), own.sum()
    assert abs(share - 2 / 3) < 4 * np.sqrt(2 / 9 / count)
    assert np.abs(x[~own]).max() < 1


def test_many_components_are_all_drawn():
    many = GaussianMixture(np.arange(299.0)[:, None], 1e-4, labels=np.arange(299) % 7)
    x, label = many.sample(jax.random.key(0), COUNT)
    mode = np.rint(np.asarray(x)[:, 0]).astype(int)
    np.testing.assert_array_equal(label, mode % 7)
    count = np.bincount(mode, minlength=299)
    assert stats.chisquare(count).pvalue > 1e-3


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0, 5), TypeError, "key must be a JAX random key, got int"),
        ((np.float32(0), 5), TypeError, "key must be a JAX random key"),
        ((jax.random.split(jax.random.key(0)), 5), ValueError, "must be a single key"),
        ((jax.random.key(0), 0), ValueError, "num_samples must be at least 1, got 0"),
        (
            (jax.random.key(0), 5, 3),
            ValueError,
            r"label must be in 0..1 or 2.*got \[3\]",
        ),
        (
            (jax.random.key(0), 5, -1),
            ValueError,
            r"label must be in 0..1 or 2.*got \[-1\]",
        ),
        ((jax.random.key(0), 5, [0, 1]), ValueError, r"integers of shape \(5,\)"),
        ((jax.random.key(0), 2, [0.0, 1.0]), ValueError, "must be an integer, got"),
    ],
)
def test_bad_requests(mixture, arguments, error, message):
    arguments = tuple(np.array(a) if isinstance(a, list) else a for a in arguments)
    with pytest.raises(error, match=message):
        mixture.sample(*arguments)
