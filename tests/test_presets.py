"""The named mixtures: shapes, labels, published moments, and every refused argument."""

import jax
import numpy as np
import pytest

from gmm_guidance import presets


@pytest.fixture(scope="module")
def tree():
    return presets.tree()


def test_two_modes_is_the_papers_line():
    mixture = presets.two_modes()
    assert (mixture.num_components, mixture.dim, mixture.num_labels) == (2, 1, 2)
    np.testing.assert_array_equal(mixture.means, [[-4.0], [4.0]])
    np.testing.assert_array_equal(mixture.labels, [0, 1])
    np.testing.assert_allclose(mixture.covariances, 1.0)
    narrow = presets.two_modes(std=0.5, mean=1.0)
    np.testing.assert_allclose(narrow.covariances, 0.25)
    np.testing.assert_array_equal(narrow.means, [[-1.0], [1.0]])


def test_four_corners_labels():
    corner = presets.four_corners(std=0.5)
    assert (corner.num_components, corner.dim, corner.num_labels) == (4, 2, 4)
    np.testing.assert_array_equal(np.abs(corner.means), 4.0)
    assert len(np.unique(np.asarray(corner.means), axis=0)) == 4
    np.testing.assert_allclose(
        corner.covariances, np.broadcast_to(0.25 * np.eye(2), (4, 2, 2))
    )
    diagonal = presets.four_corners(labels="diagonal")
    assert diagonal.num_labels == 2
    equal_signs = np.prod(np.asarray(diagonal.means), axis=1) > 0
    np.testing.assert_array_equal(diagonal.labels, np.where(equal_signs, 0, 1))


def test_tree_has_the_published_size_and_moments(tree):
    assert tree.num_components == 2 * 127 * 8
    assert (tree.dim, tree.num_labels) == (2, 2)
    np.testing.assert_array_equal(np.bincount(tree.labels), [1016, 1016])
    assert tree.condition(0).num_components == 1016
    # The published class A; each draw's own jitter moves these by about 0.025.
    np.testing.assert_allclose(tree.mean(0), [0.37, 0.36], atol=0.05)
    sd = np.sqrt(np.diag(tree.covariance(0)))
    np.testing.assert_allclose(sd, [0.34, 0.34], atol=0.05)
    np.testing.assert_allclose(tree.mean(1), [-0.37, -0.36], atol=0.06)


def test_tree_agrees_with_the_published_moments_on_average_over_seeds():
    means, sds = [], []
    for seed in range(12):
        mixture = presets.tree(seed=seed)
        own = mixture.labels == 0
        weights = 2 * np.asarray(mixture.weights)[own]
        points = np.asarray(mixture.means)[own]
        variances = np.diagonal(np.asarray(mixture.covariances), axis1=1, axis2=2)
        means.append(weights @ points)
        sds.append(np.sqrt(weights @ (points**2 + variances[own]) - means[-1] ** 2))
    np.testing.assert_allclose(np.mean(means, axis=0), [0.37, 0.36], atol=0.02)
    np.testing.assert_allclose(np.mean(sds, axis=0), [0.34, 0.34], atol=0.02)


@pytest.mark.parametrize("classes, depth", [(1, 3), (2, 7), (4, 3), (24, 1)])
def test_tree_scale_and_class_balance(classes, depth):
    mixture = presets.tree(depth=depth, classes=classes, scale=0.7)
    assert mixture.num_components == classes * (2**depth - 1) * 8
    weights, means = np.asarray(mixture.weights), np.asarray(mixture.means)
    variances = np.diagonal(np.asarray(mixture.covariances), axis1=1, axis2=2)
    second = weights @ (means**2 + variances)
    np.testing.assert_allclose(np.sqrt(second.mean()), 0.7, rtol=1e-5)
    np.testing.assert_allclose(
        np.bincount(mixture.labels, weights), 1 / classes, rtol=1e-5
    )


def test_tree_trunks_start_at_evenly_spread_angles():
    mixture = presets.tree(depth=1, classes=4)
    means = np.asarray(mixture.means)
    angles = np.arctan2(means[:, 1], means[:, 0]) % (2 * np.pi)
    wanted = np.repeat(np.pi / 4 + np.pi / 2 * np.arange(4), 8)
    np.testing.assert_allclose(angles, wanted, atol=1e-6)


def test_tree_is_deterministic_and_its_seed_matters(tree):
    np.testing.assert_array_equal(presets.tree().means, tree.means)
    assert not np.allclose(presets.tree(seed=3).means, tree.means)


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.03, 0.5])
def test_tree_is_finite_far_from_the_data(tree, sigma):
    # Public code multiplies densities out and returns NaN here.
    x = np.array([[3.0, 3.0], [6.0, 6.0], [-20.0, 1.0]], np.float32)
    for label in (None, 0):
        assert np.isfinite(tree.log_prob(x, sigma, label)).all()
        assert np.isfinite(tree.score(x, sigma, label)).all()


def test_tree_components_lie_along_branches():
    # One trunk: 8 evenly spaced Gaussians, longer along the trunk than across it.
    mixture = presets.tree(depth=1, classes=1)
    means = np.asarray(mixture.means, np.float64)
    steps = np.diff(means, axis=0)
    np.testing.assert_allclose(
        steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6
    )
    np.testing.assert_allclose(means[0], steps[0] / 2, atol=1e-6)
    length = 8 * np.linalg.norm(steps[0])
    direction = steps[0] / np.linalg.norm(steps[0])
    covariance = np.asarray(mixture.covariances, np.float64)[0]
    np.testing.assert_allclose(
        np.sqrt(direction @ covariance @ direction), 0.06 * length, rtol=1e-4
    )
    thin = np.sqrt(np.linalg.eigvalsh(covariance)[0])
    assert 0.2 / 0.292 / 1.2 < thin / (0.06 * length) < 0.2 / 0.292 / 0.8


def test_ring_modes_and_labels():
    mixture = presets.ring(num_modes=6, radius=2.0, std=0.1)
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(mixture.means), axis=1), 2.0, rtol=1e-6
    )
    assert mixture.num_labels == 6
    np.testing.assert_array_equal(
        presets.ring(num_modes=6, num_labels=2).labels, [0, 1] * 3
    )


@pytest.mark.parametrize(
    "labels, number", [("checkerboard", 2), ("mode", 25), ("single", 1)]
)
def test_grid(labels, number):
    mixture = presets.grid(labels=labels)
    assert (mixture.num_components, mixture.num_labels) == (25, number)
    np.testing.assert_allclose(mixture.mean(), 0.0, atol=1e-6)
    means = np.asarray(mixture.means)
    np.testing.assert_allclose(np.unique(means), [-4, -2, 0, 2, 4])
    if labels == "checkerboard":
        distance = np.abs(means[:, None] - means[None]).sum(axis=2)
        neighbours = np.isclose(distance, 2.0)
        differ = mixture.labels[:, None] != mixture.labels[None]
        assert differ[neighbours].all()


@pytest.mark.parametrize(
    "labels, cells, number", [("colour", 16, 2), ("cell", 8, 8), ("single", 8, 1)]
)
def test_checkerboard(labels, cells, number, key):
    mixture = presets.checkerboard(labels=labels)
    assert (mixture.num_components, mixture.num_labels) == (cells * 16, number)
    x, _ = mixture.sample(key, 4000, 0)
    column, row = np.floor((np.asarray(x) + 4) / 2).astype(int).T
    inside = (np.abs(np.asarray(x)) < 4).all(axis=1)
    if labels == "cell":
        inside &= (column == 0) & (row == 0)
    else:
        inside &= (column + row) % 2 == 0
    # 15 % of the mass is blurred over the edges, some of it onto other black cells.
    assert 0.83 < inside.mean() < 0.88


def test_checkerboard_fills_its_board_evenly():
    mixture = presets.checkerboard()
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (500, 2)).astype(np.float32)
    density = np.exp(np.asarray(mixture.log_prob(points)))
    np.testing.assert_allclose(density, 1 / 64, rtol=0.04)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_random_is_positive_definite_and_well_conditioned(dim):
    mixture = presets.random(3, num_components=20, dim=dim, condition_number=50.0)
    assert (mixture.num_components, mixture.dim, mixture.num_labels) == (20, dim, 2)
    eigenvalues = np.linalg.eigvalsh(np.asarray(mixture.covariances, np.float64))
    assert (eigenvalues > 0).all()
    assert (eigenvalues.max(axis=1) / eigenvalues.min(axis=1) < 50.1).all()
    assert eigenvalues.max() <= 1.0 + 1e-5
    np.testing.assert_array_equal(np.bincount(mixture.labels), [10, 10])


def test_random_takes_a_seed_or_a_key(key):
    by_seed, by_key = presets.random(0), presets.random(key)
    np.testing.assert_array_equal(by_seed.means, by_key.means)
    np.testing.assert_array_equal(by_seed.covariances, by_key.covariances)
    assert not np.allclose(presets.random(1).means, by_seed.means)


def test_every_preset_is_found_by_name_and_normalised():
    assert set(presets.names()) == set(presets.PRESETS)
    for name in presets.names():
        mixture = presets.get(name, **({"key": 0} if name == "random" else {}))
        np.testing.assert_allclose(np.sum(mixture.weights), 1.0, rtol=1e-5)
        assert np.isfinite(mixture.means).all() and (mixture.variances > 0).all()
        assert mixture.num_labels == mixture.labels.max() + 1
    assert presets.get("ring", num_modes=3).num_components == 3


def test_get_suggests_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'four_corners'"):
        presets.get("four_corner")
    with pytest.raises(ValueError, match="name must be one of two_modes, .*'zzz'"):
        presets.get("zzz")


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("two_modes", {"std": 0.0}, "std must be positive and finite, got 0.0"),
        ("two_modes", {"std": float("nan")}, "std must be positive and finite"),
        ("two_modes", {"mean": -4.0}, "mean must be positive and finite, got -4"),
        ("four_corners", {"std": -1.0}, "std must be positive and finite"),
        ("four_corners", {"mean": 0.0}, "mean must be positive and finite"),
        ("four_corners", {"labels": "rows"}, "labels must be one of 'corner'.*'rows'"),
        ("tree", {"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ("tree", {"depth": 2.5}, "depth must be an integer of at least 1, got 2.5"),
        ("tree", {"depth": True}, "depth must be an integer"),
        ("tree", {"components_per_branch": 0}, "components_per_branch must be"),
        ("tree", {"classes": 0}, "classes must be an integer of at least 1"),
        ("tree", {"seed": -1}, "seed must be an integer of at least 0"),
        ("tree", {"scale": 0.0}, "scale must be positive"),
        ("ring", {"num_modes": 0}, "num_modes must be an integer"),
        ("ring", {"radius": 0.0}, "radius must be positive"),
        ("ring", {"std": float("inf")}, "std must be positive and finite, got inf"),
        ("ring", {"num_labels": 9}, "num_labels must be at most num_modes = 8, got 9"),
        ("ring", {"num_labels": 0}, "num_labels must be an integer of at least 1"),
        ("grid", {"side": 0}, "side must be an integer of at least 1"),
        ("grid", {"spacing": -1.0}, "spacing must be positive"),
        ("grid", {"std": 0.0}, "std must be positive"),
        ("grid", {"labels": "colour"}, "labels must be one of 'checkerboard'"),
        ("checkerboard", {"side": 1}, "side must be an integer of at least 2"),
        ("checkerboard", {"width": 0.0}, "width must be positive"),
        ("checkerboard", {"per_cell_side": 0}, "per_cell_side must be"),
        ("checkerboard", {"labels": "black"}, "labels must be one of 'colour'"),
        ("random", {"key": -1}, "key must be an integer of at least 0"),
        ("random", {"key": 0, "num_components": 0}, "num_components must be"),
        ("random", {"key": 0, "dim": 0}, "dim must be an integer of at least 1"),
        ("random", {"key": 0, "num_labels": 9}, "at most num_components = 8"),
        ("random", {"key": 0, "spread": 0.0}, "spread must be positive"),
        ("random", {"key": 0, "std": 0.0}, "std must be positive"),
        ("random", {"key": 0, "condition_number": 0.5}, "condition_number must be"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        presets.get(name, **kwargs)


def test_random_refuses_what_is_no_key():
    with pytest.raises(TypeError, match="JAX random key"):
        presets.random("seed")
    with pytest.raises(ValueError, match="single key"):
        presets.random(jax.random.split(jax.random.key(0), 3))
