"""Metrics beside independent oracles: SciPy, POT, and closed forms on a line."""

import json

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance
import scipy.special
import scipy.stats

from gmm_guidance import metrics, presets
from gmm_guidance.mixture import GaussianMixture


@pytest.fixture(scope="module")
def line():
    """Overlapping, unequal modes on a line; label 1 has two of them."""
    return GaussianMixture(
        np.array([[-2.0], [0.5], [5.0]]),
        np.array([1.0, 0.04, 0.25]),
        np.array([0.5, 0.3, 0.2]),
        np.array([0, 1, 1]),
    )


@pytest.fixture(scope="module")
def gaussian():
    return GaussianMixture(np.array([[1.5]]), 4.0)


def scipy_cdf(mixture, x, label=None):
    """The mixture's distribution function by SciPy, written out."""
    weights = np.asarray(mixture.weights, np.float64)
    if label is not None:
        weights = weights * (mixture.labels == label)
    weights = weights / weights.sum()
    means = np.asarray(mixture.means, np.float64)[:, 0]
    stds = np.sqrt(np.asarray(mixture.covariances, np.float64)[:, 0, 0])
    return scipy.stats.norm.cdf(np.asarray(x)[..., None], means, stds) @ weights


def draws(mixture, n, seed=0, label=None):
    x, labels = mixture.sample(jax.random.key(seed), n, label)
    return np.asarray(x, np.float64), np.asarray(labels)


# -- cdf and quantile --------------------------------------------------------------


def test_normal_function_is_exact():
    z = np.linspace(-9, 9, 20001)
    upper, density = metrics._normal(z)
    np.testing.assert_allclose(upper, scipy.special.ndtr(z), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(density, scipy.stats.norm.pdf(z), rtol=1e-12)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_cdf_agrees_with_scipy(line, label):
    x = np.random.default_rng(0).uniform(-12, 12, (40, 25))
    wanted = scipy_cdf(line, x, None if label == 2 else label)
    np.testing.assert_allclose(metrics.cdf(line, x, label), wanted, atol=1e-14)


def test_quantile_of_one_gaussian_is_scipys(gaussian):
    u = np.concatenate([[1e-9, 1e-4], np.linspace(0.01, 0.99, 99), [1 - 1e-6]])
    wanted = scipy.stats.norm.ppf(u, 1.5, 2.0)
    np.testing.assert_allclose(metrics.quantile(gaussian, u), wanted, rtol=1e-9)


@pytest.mark.parametrize("label", [None, 1])
def test_quantile_inverts_the_cdf(line, label):
    u = np.random.default_rng(1).uniform(size=(30, 20))
    x = metrics.quantile(line, u, label)
    assert x.shape == u.shape
    np.testing.assert_allclose(metrics.cdf(line, x, label), u, atol=1e-14)
    root = scipy.optimize.brentq(
        lambda t: scipy_cdf(line, t, label) - u[0, 0], -20, 20, xtol=1e-13
    )
    np.testing.assert_allclose(x[0, 0], root, atol=1e-10)


def test_quantile_at_the_ends_and_across_a_gap():
    modes = presets.two_modes(std=0.01)
    low, middle, high = metrics.quantile(modes, [0.0, 0.5, 1.0])
    assert (low, high) == (-np.inf, np.inf)
    assert -4 <= middle <= 4  # no mass there: any point of the gap is a median
    x = metrics.quantile(modes, [0.25, 0.75])
    np.testing.assert_allclose(x, [-4, 4], atol=1e-9)
    assert metrics.quantile(modes, 0.25).shape == ()


def test_quantile_of_a_thousand_components():
    rng = np.random.default_rng(0)
    many = GaussianMixture(rng.normal(size=(1016, 1)), rng.uniform(1e-6, 0.01, 1016))
    u = rng.uniform(size=3000)
    np.testing.assert_allclose(
        metrics.cdf(many, metrics.quantile(many, u)), u, atol=1e-13
    )
    np.testing.assert_allclose(
        metrics.cdf(many, u), scipy_cdf(many, u), rtol=0, atol=1e-13
    )


# -- Wasserstein -------------------------------------------------------------------


def quantiles_of_gaussian(n, mean, std):
    return scipy.stats.norm.ppf((np.arange(n) + 0.5) / n, mean, std)


@pytest.mark.parametrize("mean, std", [(1.5, 2.0), (2.0, 2.0), (1.5, 1.0), (-1.0, 3.0)])
def test_w2_between_gaussians_in_closed_form(gaussian, mean, std):
    x = quantiles_of_gaussian(100_000, mean, std)
    wanted = np.hypot(mean - 1.5, std - 2.0)
    # What is left at zero distance is the discreteness of the 100,000 points.
    np.testing.assert_allclose(metrics.wasserstein_1d(x, gaussian), wanted, atol=0.01)
    if wanted:
        value = metrics.wasserstein_1d(x, gaussian)
        np.testing.assert_allclose(value, wanted, rtol=1e-4)


def test_w1_of_a_shifted_gaussian_is_the_shift(gaussian):
    x = quantiles_of_gaussian(20_000, 2.25, 2.0)
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x, gaussian, p=1), 0.75, atol=1e-3
    )


@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize("label", [None, 1])
def test_wasserstein_to_a_mixture_agrees_with_quadrature(line, n, label):
    """Cell by cell, with SciPy's quantiles: the definition itself."""
    x = np.sort(np.random.default_rng(n).normal(0, 4, n))
    fine = 200_000 // n * n
    u = (np.arange(fine) + 0.5) / fine
    grid = np.linspace(-12, 12, 400_001)
    q = np.interp(u, scipy_cdf(line, grid, label), grid)
    gaps = np.abs(np.repeat(x, fine // n) - q)
    for p in (1, 2):
        np.testing.assert_allclose(
            metrics.wasserstein_1d(x, line, label, p),
            np.mean(gaps**p) ** (1 / p),
            rtol=2e-5,
        )


def test_small_distances_are_resolved_to_the_stated_error(line):
    x = draws(line, 5000)[0][:, 0]
    components = metrics._line(line, None, "test")
    for p in (1, 2):
        fine = metrics._line_cost(np.sort(x), components, p, 262_144) ** (1 / p)
        assert abs(metrics.wasserstein_1d(x, line, p=p) - fine) < 1e-8
        coarse = metrics._line_cost(np.sort(x), components, p, 2048) ** (1 / p)
        assert abs(coarse - fine) < 1e-6


@pytest.mark.parametrize("n, m", [(200, 200), (200, 130), (7, 1)])
def test_wasserstein_between_samples_agrees_with_scipy_and_pot(n, m):
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=n), 0.3 + 2 * rng.normal(size=m)
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x, y, p=1), scipy.stats.wasserstein_distance(x, y)
    )
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x[:, None], y), np.sqrt(ot.emd2_1d(x, y))
    )


def test_w2_to_a_mixture_is_the_limit_of_pots_samples(line):
    ot = pytest.importorskip("ot")
    x = np.random.default_rng(0).normal(1, 3, 300)
    u = (np.arange(60_000) + 0.5) / 60_000
    true = metrics.quantile(line, u)
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x, line), np.sqrt(ot.emd2_1d(x, true)), rtol=1e-4
    )


def test_sliced_distance_of_a_translation():
    x = np.random.default_rng(0).normal(size=(500, 2))
    shift = np.array([0.3, -0.4])
    # Equally spaced angles average cos^2 to one half exactly.
    for p, wanted in ((2, 0.5 / np.sqrt(2)), (1, 0.5 * 2 / np.pi)):
        value = metrics.sliced_wasserstein(x, x + shift, p=p)
        np.testing.assert_allclose(value, wanted, rtol=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_sliced_distance_to_a_gaussian_in_closed_form(dim):
    rng = np.random.default_rng(dim)
    root = rng.normal(size=(dim, dim))
    mean, covariance = rng.normal(size=dim), root @ root.T + 0.1 * np.eye(dim)
    truth = GaussianMixture(mean[None], covariance[None])
    point = rng.normal(size=(1, dim))
    # A point at x: W2^2 of a projection is (u.(x - m))^2 + u.S.u, by hand.
    value = metrics.sliced_wasserstein(point, truth, num_directions=50)
    directions = metrics._directions(50, dim)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    offset = directions @ (point[0] - mean)
    spread = np.einsum("ai,ij,aj->a", directions, covariance, directions)
    np.testing.assert_allclose(value, np.sqrt(np.mean(offset**2 + spread)), rtol=1e-6)
    assert value == metrics.sliced_wasserstein(point, truth, num_directions=50)


def test_sliced_distance_to_a_mixture_is_the_limit_of_many_samples():
    truth = presets.random(0, num_components=5)
    x = draws(presets.random(1, num_components=5), 2000)[0]
    for label in (None, 1):
        many = draws(truth, 40_000, seed=3, label=label)[0]
        np.testing.assert_allclose(
            metrics.sliced_wasserstein(x, truth, label),
            metrics.sliced_wasserstein(x, many),
            rtol=0.02,
        )


def test_sliced_distance_agrees_with_pot_on_the_same_directions():
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), 0.5 + rng.normal(size=(200, 3))
    wanted = ot.sliced_wasserstein_distance(
        x, y, projections=metrics._directions(64, 3).T
    )
    np.testing.assert_allclose(metrics.sliced_wasserstein(x, y), wanted)


def test_sliced_distance_on_a_line_is_the_distance_on_the_line(line):
    x = draws(line, 100)[0]
    assert metrics.sliced_wasserstein(x, line, 1) == metrics.wasserstein_1d(x, line, 1)
    assert metrics.sliced_wasserstein(x, x + 1) == pytest.approx(1)


def test_distances_do_not_depend_on_the_order_of_samples(line):
    x, y = draws(line, 400)[0], draws(line, 300, seed=1)[0]
    order = np.random.default_rng(0).permutation(400)
    plane = np.random.default_rng(1).normal(size=(400, 2))
    corners = presets.four_corners()
    for function, samples, truth in (
        (metrics.wasserstein_1d, x, line),
        (metrics.wasserstein_1d, x, y),
        (metrics.sliced_wasserstein, plane, corners),
        (metrics.energy_distance, x, y),
        (metrics.energy_distance, plane, plane[:200] + 1),
    ):
        np.testing.assert_allclose(
            function(samples[order], truth), function(samples, truth), rtol=1e-5
        )


# -- energy distance ---------------------------------------------------------------


@pytest.mark.parametrize(
    "n, m, dim", [(50, 70, 1), (3, 2, 2), (1500, 1025, 2), (300, 40, 7)]
)
def test_energy_distance_agrees_with_scipys_pairwise_distances(n, m, dim):
    rng = np.random.default_rng(n)
    x, y = 20 + rng.normal(size=(n, dim)), 20.5 + 1.3 * rng.normal(size=(m, dim))
    across = scipy.spatial.distance.cdist(x, y).mean()
    wanted = (
        2 * across
        - scipy.spatial.distance.pdist(x).mean()
        - scipy.spatial.distance.pdist(y).mean()
    )
    value = metrics.energy_distance(x, y)
    np.testing.assert_allclose(value, wanted, atol=2e-7 * across)


def test_energy_distance_beside_scipys_biased_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), 1 + rng.normal(size=300)
    # Putting the zero self-distances back turns the unbiased into the biased estimate.
    bias = [np.mean(scipy.spatial.distance.pdist(a[:, None])) / len(a) for a in (x, y)]
    np.testing.assert_allclose(
        metrics.energy_distance(x, y) + sum(bias),
        scipy.stats.energy_distance(x, y) ** 2,
        rtol=1e-10,
    )


@pytest.mark.parametrize("dim", [1, 2])
def test_energy_distance_is_unbiased_and_may_be_negative(dim):
    rng = np.random.default_rng(0)
    values = [
        metrics.energy_distance(rng.normal(size=(40, dim)), rng.normal(size=(30, dim)))
        for _ in range(300)
    ]
    mean, error = metrics.mean_and_standard_error(values)
    assert abs(mean) < 3.5 * error
    assert min(values) < 0


# -- statistics of modes and classes -----------------------------------------------


def test_mode_statistics_of_a_known_distortion():
    """Every mode pushed outward by half a std and narrowed to 0.7: read off exactly."""
    truth = presets.four_corners(std=0.5)
    x, labels = draws(truth, 8000)
    means = np.asarray(truth.means)[labels]
    outward = means / np.linalg.norm(means, axis=1, keepdims=True)
    moved = means + 0.7 * (x - means) + 0.25 * outward
    for result in (
        metrics.mode_statistics(moved, labels, truth),
        metrics.class_statistics(moved, labels, truth),
    ):
        np.testing.assert_allclose(result.outward_shift, 0.5, atol=0.05)
        np.testing.assert_allclose(result.relative_shift, 0.5, atol=0.05)
        np.testing.assert_allclose(result.width_ratio, 0.7, atol=0.03)
        np.testing.assert_allclose(
            result.mean_shift, 0.25 * np.asarray(truth.means) / 4 / 2**0.5, atol=0.03
        )
        np.testing.assert_array_equal(result.count, np.bincount(labels))
        np.testing.assert_allclose(result.share, result.expected_share)
        assert result.share.sum() == pytest.approx(1)


def test_mode_statistics_agree_with_numpy_moments(line):
    x, labels = draws(line, 2000)
    result = metrics.mode_statistics(x, labels, line)
    # In label 1 the modes at 0.5 and 5 do not overlap: a threshold separates them.
    for mode, own in ((0, x[labels == 0]), (2, x[(labels == 1) & (x[:, 0] > 2.5)])):
        mean, variance = [-2.0, 0.5, 5.0][mode], [1.0, 0.04, 0.25][mode]
        assert result.count[mode] == len(own)
        np.testing.assert_allclose(result.mean_shift[mode], own.mean(0) - mean)
        np.testing.assert_allclose(
            result.width_ratio[mode], np.sqrt(own.var(ddof=1) / variance)
        )
    shares = np.mean(labels == 1) * np.array([0.6, 0.4])
    np.testing.assert_allclose(result.expected_share[1:], shares, rtol=1e-5)


def test_mode_statistics_with_missing_and_single_samples():
    truth = presets.four_corners(labels="diagonal")
    x = np.array([[-4.0, -4.0], [-3.0, -4.0], [4.0, 5.0]])
    result = metrics.mode_statistics(x, 0, truth)
    np.testing.assert_array_equal(result.count, [2, 0, 0, 1])
    np.testing.assert_allclose(result.expected_share, [0.5, 0, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(result.mean_shift[0], [0.5, 0.0], atol=1e-12)
    assert np.isnan(result.mean_shift[[1, 2]]).all()
    assert np.isnan(result.width_ratio[1:]).all()  # one sample has no width
    assert np.isfinite(result.outward_shift[3])
    classes = metrics.class_statistics(x, 0, truth)
    # Both diagonals' means are the overall mean: there is no outward direction.
    assert np.isnan(classes.outward_shift).all()
    assert np.isfinite(classes.relative_shift[0])


def test_outward_is_away_from_the_whole_mixtures_mean(line):
    # The mean is 0.15, so 0.5 lies above it, although it is the lower of its class.
    x = np.asarray(line.means)[[0, 1, 2]] + 0.1
    modes = metrics.mode_statistics(x, [0, 1, 1], line)
    np.testing.assert_allclose(modes.outward_shift, [-0.1, 0.5, 0.2], rtol=1e-5)
    low = GaussianMixture(np.array([[6.0], [10.0]]), 1.0, labels=np.arange(2))
    result = metrics.class_statistics(np.array([5.0, 10.5]), [0, 1], low)
    np.testing.assert_allclose(result.outward_shift, [1.0, 0.5], rtol=1e-5)


def test_share_error_is_the_total_variation_of_mode_shares():
    truth = presets.four_corners(labels="diagonal")
    x = np.array([[-4.0, -4.0]] * 3 + [[4.0, 4.0]])
    result = metrics.summarise(x, 0, truth)
    assert result["mode_share_error"] == pytest.approx(0.25)  # 3/4, 1/4 for 1/2, 1/2


def test_samples_count_for_modes_of_their_own_label_only():
    truth = presets.four_corners()
    x = np.full((10, 2), 4.0)  # all at the last corner, whatever was asked
    labels = np.arange(10) % 4
    result = metrics.mode_statistics(x, labels, truth)
    np.testing.assert_array_equal(result.count, [3, 3, 2, 2])
    free = metrics.mode_statistics(x, None, truth)
    np.testing.assert_array_equal(free.count, [0, 0, 0, 10])
    np.testing.assert_allclose(free.expected_share, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(
        metrics.mode_statistics(x, truth.num_labels, truth).count, free.count
    )


def test_class_statistics_use_the_class_moments(line):
    x, labels = draws(line, 3000)
    result = metrics.class_statistics(x, labels, line)
    for label in (0, 1):
        own = x[labels == label]
        mean = np.asarray(line.mean(label))
        std = np.sqrt(np.asarray(line.covariance(label))[0, 0])
        shift = own.mean(0) - mean
        np.testing.assert_allclose(result.mean_shift[label], shift, atol=1e-5)
        np.testing.assert_allclose(
            result.relative_shift[label], np.abs(shift[0]) / std, atol=1e-5
        )
        np.testing.assert_allclose(
            result.width_ratio[label], own.std(ddof=1) / std, rtol=1e-4
        )


# -- single numbers ----------------------------------------------------------------


def test_outside_fraction_of_true_samples_is_the_chi_square_tail():
    n = 100_000
    for mixture, wanted in (
        (GaussianMixture(np.zeros((1, 1)), 4.0), 2 * scipy.stats.norm.sf(3)),
        (presets.random(0, 1, 2, 1), np.exp(-4.5)),
    ):
        x, labels = draws(mixture, n)
        value = metrics.outside_fraction(x, labels, mixture)
        assert abs(value - wanted) < 4 * np.sqrt(wanted / n)


def test_outside_fraction_agrees_with_scipys_mahalanobis_distance():
    truth = presets.random(4, num_components=6, dim=3)
    x, labels = draws(truth, 60)
    x = x + 0.5 * np.random.default_rng(0).normal(size=x.shape)
    means = np.asarray(truth.means, np.float64)
    inverses = np.linalg.inv(np.asarray(truth.covariances, np.float64))
    nearest = np.array(
        [
            min(
                scipy.spatial.distance.mahalanobis(point, means[k], inverses[k])
                for k in np.flatnonzero(truth.labels == label)
            )
            for point, label in zip(x, labels, strict=True)
        ]
    )
    # Just below and above every sample's own distance: each of them is right.
    for distance in nearest:
        for num_std in (0.9999 * distance, 1.0001 * distance):
            value = metrics.outside_fraction(x, labels, truth, num_std)
            assert value == np.mean(nearest > num_std)


def test_outside_fraction_looks_at_the_own_label_or_at_all():
    truth = presets.two_modes()
    x = np.array([-4.0, 4.0, 0.0, 4.0])
    assert metrics.outside_fraction(x, 0, truth) == 0.75
    assert metrics.outside_fraction(x, [0, 1, 0, 0], truth) == 0.5
    assert metrics.outside_fraction(x, None, truth) == 0.25


def test_negative_log_likelihood_agrees_with_scipy(line):
    x, _ = draws(line, 500)
    densities = 0.6 * scipy.stats.norm.pdf(x, 0.5, 0.2) + 0.4 * scipy.stats.norm.pdf(
        x, 5.0, 0.5
    )
    with np.errstate(divide="ignore"):
        values = -np.log(densities)[:, 0]
    finite = np.isfinite(values)  # SciPy's densities underflow; ours are in log space
    x, values = x[finite], values[finite]
    result = metrics.negative_log_likelihood(x, 1, line)
    np.testing.assert_allclose(result.mean, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.median, np.median(values), rtol=1e-5)
    np.testing.assert_allclose(result.p99, np.quantile(values, 0.99), rtol=1e-5)


def test_negative_log_likelihood_rewards_shrinkage():
    """The reason why it must not be reported alone."""
    truth = presets.two_modes()
    x, labels = draws(truth, 5000)
    means = np.asarray(truth.means)[labels]
    shrunk = means + 0.5 * (x - means)
    true = metrics.negative_log_likelihood(x, labels, truth)
    assert metrics.negative_log_likelihood(shrunk, labels, truth).mean < true.mean
    np.testing.assert_allclose(true.mean, 0.5 * np.log(2 * np.pi * np.e), atol=0.05)


def test_wrong_mode_fraction():
    truth = presets.two_modes()
    x = np.array([-4.0, 4.0, 1.0, -0.1])
    assert metrics.wrong_mode_fraction(x, [0, 1, 1, 0], truth) == 0
    assert metrics.wrong_mode_fraction(x, [1, 0, 1, 0], truth) == 0.5
    assert metrics.wrong_mode_fraction(x, 0, truth) == 0.5
    # Overlapping classes: true samples cross the boundary with probability Phi(-1).
    close = presets.two_modes(std=1.0, mean=1.0)
    x, labels = draws(close, 50_000)
    value = metrics.wrong_mode_fraction(x, labels, close)
    np.testing.assert_allclose(value, scipy.stats.norm.cdf(-1), atol=0.006)


# -- everything at once ------------------------------------------------------------


COMMON = {
    "energy_distance",
    "mode_shift",
    "mode_width_ratio",
    "mode_share_error",
    "outside_fraction",
    "nll_mean",
    "nll_median",
    "nll_p99",
}
BY_CLASS = {"class_shift", "class_width_ratio", "wrong_mode_fraction"}


def test_summary_of_true_and_of_shifted_samples(line):
    x, labels = draws(line, 2000)
    true = metrics.summarise(x, labels, line)
    assert set(true) == COMMON | BY_CLASS | {"w2"}
    json.dumps(true)  # plain floats
    assert true == metrics.summarise(x, labels, line)
    each = [metrics.wasserstein_1d(x[labels == k], line, k) for k in (0, 1)]
    np.testing.assert_allclose(true["w2"], np.mean(each))
    moved = metrics.summarise(x + 1, labels, line)
    np.testing.assert_allclose(moved["w2"], 1, atol=0.1)
    assert moved["energy_distance"] > 0.1 > abs(true["energy_distance"])


def test_summary_in_the_plane_and_without_labels():
    truth = presets.four_corners()
    x, labels = draws(truth, 600)
    result = metrics.summarise(x, labels, truth, key=jax.random.key(5))
    assert set(result) == COMMON | BY_CLASS | {"sliced_w2"}
    assert all(np.isfinite(value) for value in result.values())
    free = metrics.summarise(x, None, truth)
    assert set(free) == COMMON | {"sliced_w2"}
    np.testing.assert_allclose(
        free["sliced_w2"], metrics.sliced_wasserstein(x, truth), rtol=1e-12
    )


def test_truth_floor_brackets_a_fresh_draw(key):
    truth = presets.two_modes()
    x, labels = draws(truth, 500, seed=9)
    floor = metrics.truth_floor(key, truth, labels, num_repeats=8)
    fresh = metrics.summarise(x, labels, truth)
    assert set(floor) == set(fresh)
    for name, value in fresh.items():
        entry = floor[name]
        spread = entry["standard_error"] * np.sqrt(8)
        assert abs(value - entry["mean"]) <= 5 * spread + 1e-12, name
    again = metrics.truth_floor(key, truth, labels, num_repeats=8)
    assert again == floor
    assert floor["w2"]["mean"] < metrics.summarise(x + 0.5, labels, truth)["w2"]


# -- uncertainty -------------------------------------------------------------------


def test_mean_and_standard_error_agree_with_scipy():
    values = np.random.default_rng(0).normal(size=(6, 4))
    for axis in (0, 1):
        mean, error = metrics.mean_and_standard_error(values, axis)
        np.testing.assert_allclose(mean, values.mean(axis))
        np.testing.assert_allclose(error, scipy.stats.sem(values, axis))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 29, 100, 1001])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantile_agrees_with_scipy(degrees, level):
    np.testing.assert_allclose(
        metrics._student_t(level, degrees),
        scipy.stats.t.ppf(0.5 + level / 2, degrees),
        rtol=1e-9,
    )


def test_confidence_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=(5, 3))
    low, high = metrics.confidence_interval(values, 0.9)
    wanted = scipy.stats.t.interval(
        0.9, 4, values.mean(0), scipy.stats.sem(values, axis=0)
    )
    np.testing.assert_allclose([low, high], wanted)


# -- refused arguments -------------------------------------------------------------


def bad_samples():
    x = np.zeros((5, 2))
    x[1, 0], x[3, 1] = np.nan, np.inf
    return x


CORNERS = presets.four_corners()
LINE = presets.two_modes()
PLANE = np.zeros((4, 2))


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (metrics.cdf, (CORNERS, 0.0), "cdf needs a mixture of dimension 1, got .* 2"),
        (metrics.cdf, (LINE, 0.0, 3), r"labels must be in 0\.\.1, or 2 .*got \[3\]"),
        (metrics.quantile, (CORNERS, 0.5), "quantile needs a mixture of dimension 1"),
        (metrics.quantile, (LINE, [0.5, 1.5]), r"u must lie in \[0, 1\], got \[1.5\]"),
        (metrics.quantile, (LINE, np.nan), r"u must lie in \[0, 1\], got \[nan\]"),
        (metrics.wasserstein_1d, (PLANE, LINE), r"shape \[n, 1\].*got \(4, 2\)"),
        (metrics.wasserstein_1d, (PLANE, CORNERS), "needs a mixture of dimension 1"),
        (metrics.wasserstein_1d, ([0.0], LINE, None, 3), "p must be 1 or 2, got 3"),
        (metrics.wasserstein_1d, ([0.0], [0.0], 1), "label chooses a class"),
        (metrics.wasserstein_1d, ([], LINE), "at least 1 samples are needed, got 0"),
        (metrics.wasserstein_1d, ([0.0], LINE, [0]), "None or one integer"),
        (metrics.wasserstein_1d, ([0.0], LINE, 0.5), "labels must be integers"),
        (metrics.sliced_wasserstein, (PLANE, PLANE[:, :1]), r"\[n, 2\].*got \(4, 1\)"),
        (metrics.sliced_wasserstein, (PLANE[0], CORNERS), r"\[n, 2\].*got \(2,\)"),
        (metrics.sliced_wasserstein, (PLANE, PLANE, 0), "label chooses a class"),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 5), "got .5."),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 0, 0), "num_directions must be"),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 0, 8, 3), "p must be 1 or 2"),
        (metrics.sliced_wasserstein, (bad_samples(), CORNERS), "2 of 5 hold NaN"),
        (metrics.energy_distance, ([0.0], [0.0, 1.0]), "at least 2 samples"),
        (metrics.energy_distance, (PLANE, [0.0, 1.0]), r"shape \[n, 2\]"),
        (metrics.energy_distance, (bad_samples(), PLANE), "the first at index 1"),
        (metrics.mode_statistics, (bad_samples(), 0, CORNERS), "2 of 5 hold NaN"),
        (metrics.mode_statistics, (PLANE, [0, 1], CORNERS), r"shape \[4\].*got \(2,\)"),
        (metrics.mode_statistics, (PLANE, 5, CORNERS), r"0\.\.3, or 4 .*got \[5\]"),
        (metrics.mode_statistics, (PLANE, -1, CORNERS), r"got \[-1\]"),
        (metrics.mode_statistics, (PLANE, 0.0, CORNERS), "must be integers"),
        (metrics.mode_statistics, (np.zeros((4, 3)), 0, CORNERS), r"got \(4, 3\)"),
        (metrics.class_statistics, (PLANE, None, CORNERS), r"0\.\.3; got \[4\]"),
        (metrics.outside_fraction, (PLANE, 0, CORNERS, 0.0), "num_std must be"),
        (metrics.outside_fraction, (PLANE, 9, CORNERS), r"got \[9\]"),
        (metrics.negative_log_likelihood, (bad_samples(), 0, CORNERS), "2 of 5"),
        (metrics.wrong_mode_fraction, (PLANE, 4, CORNERS), r"0\.\.3; got \[4\]"),
        (metrics.summarise, (PLANE, [0, 0, 0, 1], CORNERS), "label 1 has 1"),
        (metrics.truth_floor, (None, LINE, [0, 1], 1), "num_repeats must be at least"),
        (metrics.truth_floor, (None, LINE, 0), r"shape \[n\].*got \(\)"),
        (metrics.truth_floor, (None, LINE, [0, 3]), r"got \[3\]"),
        (metrics.mean_and_standard_error, ([1.0],), "at least 2 values .* got 1"),
        (metrics.mean_and_standard_error, (1.0,), "at least 2 values"),
        (metrics.confidence_interval, ([1.0, 2.0], 1.0), "strictly between 0 and 1"),
        (metrics.confidence_interval, ([1.0],), "at least 2 values"),
    ],
)
def test_bad_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
