"""The closed forms against PyTorch's own mixtures and automatic differentiation."""

import jax
import numpy as np
import pytest
from support.optional import Lazy, needs

import gmm_guidance as gg

torch = Lazy("torch")
pytestmark = needs("torch")


@pytest.fixture(scope="module")
def mixture() -> gg.GaussianMixture:
    return gg.presets.random(3, num_components=6, dim=3, num_labels=2)


def torch_mixture(mixture: gg.GaussianMixture, sigma: float):
    eye = torch.eye(mixture.dim, dtype=torch.float64)
    weights = torch.tensor(np.asarray(mixture.weights, np.float64))
    covariances = torch.tensor(np.asarray(mixture.covariances, np.float64))
    covariances = 0.5 * (covariances + covariances.mT) + sigma**2 * eye
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(
            torch.tensor(np.asarray(mixture.means, np.float64)), covariances
        ),
    )


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("label", [None, 1])
def test_log_density_and_score(mixture, sigma, label):
    x, _ = mixture.sample(jax.random.key(0), 40)
    x = x + sigma * jax.random.normal(jax.random.key(1), x.shape)
    part = mixture if label is None else mixture.condition(label)
    points = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    log_prob = torch_mixture(part, sigma).log_prob(points)
    (score,) = torch.autograd.grad(log_prob.sum(), points)
    found = mixture.log_prob(x, sigma, label)
    np.testing.assert_allclose(found, log_prob.detach(), rtol=2e-5, atol=2e-5)
    scale = np.sqrt(np.mean(score.numpy() ** 2))
    np.testing.assert_allclose(
        mixture.score(x, sigma, label), score, rtol=1e-4, atol=1e-4 * scale
    )
