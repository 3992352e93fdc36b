"""Statistics of features written plainly from the papers, in float64."""

import numpy as np
import scipy.linalg


def frechet(mu_a, sigma_a, mu_b, sigma_b):
    """Heusel et al., eq. 6, with the root of the product itself."""
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b).real
    return np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * root)


def frechet_of_features(x, y):
    x, y = np.float64(x), np.float64(y)
    return frechet(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))


def radius(points, i, k):
    """Distance of a point to its k-th nearest neighbor, itself left out."""
    distances = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i]
    return sorted(distances)[k - 1]


def manifolds(real, generated, k):
    """Precision, recall, density, coverage (Kynkäänniemi et al.; Naeem et al.)."""
    real, generated = np.float64(real), np.float64(generated)
    real_radii = [radius(real, i, k) for i in range(len(real))]
    generated_radii = [radius(generated, i, k) for i in range(len(generated))]
    precise = recalled = balls = covered = 0
    for point in generated:
        around = 0
        for center, size in zip(real, real_radii, strict=True):
            around += np.linalg.norm(point - center) <= size
        precise += around > 0
        balls += around
    for point, size in zip(real, real_radii, strict=True):
        recalled += any(
            np.linalg.norm(point - center) <= other
            for center, other in zip(generated, generated_radii, strict=True)
        )
        covered += any(np.linalg.norm(point - other) <= size for other in generated)
    return (
        precise / len(generated),
        recalled / len(real),
        balls / (k * len(generated)),
        covered / len(real),
    )


def inception_score(probabilities, parts):
    """Salimans et al.: the mean over parts of exp E KL(p(y | x) | p(y))."""
    scores = []
    for part in np.array_split(probabilities, parts):
        marginal = part.mean(0)
        scores.append(np.exp(np.mean(np.sum(part * np.log(part / marginal), axis=1))))
    return np.mean(scores), np.std(scores)
