"""The named mixtures: shapes, labels and lengths."""

import numpy as np
import pytest

from gmm_guidance import presets


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
        neighbors = np.isclose(distance, 2.0)
        differ = mixture.labels[:, None] != mixture.labels[None]
        assert differ[neighbors].all()


@pytest.mark.parametrize(
    "labels, cells, number", [("color", 16, 2), ("cell", 8, 8), ("single", 8, 1)]
)
def test_checkerboard(labels, cells, number):
    mixture = presets.checkerboard(labels=labels)
    assert (mixture.num_components, mixture.num_labels) == (cells * 16, number)
    means, variances = np.asarray(mixture.means), np.asarray(mixture.variances)
    own = mixture.labels == 0
    noise = np.random.default_rng(0).normal(size=(60, own.sum(), 2))
    x = means[own] + np.sqrt(variances[own]) * noise
    column, row = np.moveaxis(np.floor((x + 4) / 2).astype(int), -1, 0)
    inside = (np.abs(x) < 4).all(axis=-1)
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
    mixture = presets.random(3, dim=dim, condition_number=50.0)
    assert (mixture.num_components, mixture.dim, mixture.num_labels) == (8, dim, 2)
    eigenvalues = np.linalg.eigvalsh(np.asarray(mixture.covariances, np.float64))
    assert (eigenvalues > 0).all()
    assert (eigenvalues.max(axis=1) / eigenvalues.min(axis=1) < 50.1).all()
    assert eigenvalues.max() <= 1.0 + 1e-5
    np.testing.assert_array_equal(np.bincount(mixture.labels), [4, 4])


def test_random_takes_a_seed_or_a_key(key):
    by_seed, by_key = presets.random(0), presets.random(key)
    np.testing.assert_array_equal(by_seed.means, by_key.means)
    np.testing.assert_array_equal(by_seed.variances, by_key.variances)
    np.testing.assert_array_equal(by_seed.eigenvectors, by_key.eigenvectors)
    assert not np.allclose(presets.random(1).means, by_seed.means)


def test_every_preset_is_found_by_name_and_normalized():
    assert set(presets.names()) == set(presets.PRESETS)
    for name in presets.names():
        mixture = presets.get(name, **({"key": 0} if name == "random" else {}))
        weights = np.exp(np.asarray(mixture.log_weights))
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
        assert np.isfinite(np.asarray(mixture.means)).all()
        assert (np.asarray(mixture.variances) > 0).all()
        assert mixture.num_labels == mixture.labels.max() + 1
    assert presets.get("ring", num_modes=3).num_components == 3
