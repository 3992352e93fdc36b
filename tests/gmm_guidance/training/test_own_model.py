"""``train`` and ``denoising_loss``, for models of one's own."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gmm_guidance as gg

DATA = np.random.default_rng(0).normal(1.5, 0.5, (2000, 1)).astype(np.float32)
FAST = gg.FitConfig((400,), batch_size=256, learning_rate=0.05, label_dropout=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    """The denoiser of ``N(mean, exp(log_variance))``, from a wrong start."""

    mean: jax.Array
    log_variance: jax.Array
    count: jax.Array
    num_labels: int = dataclasses.field(default=3, metadata={"static": True})

    def __call__(self, x, sigma, label):
        variance = jnp.exp(self.log_variance)
        gain = variance / (variance + sigma**2)
        return self.mean + gain[:, None] * (x - self.mean)


START = Affine(jnp.zeros(()), jnp.zeros(()), jnp.int32(7))


def test_the_loss_is_the_sum_written_out():
    """Of a denoiser that returns zero, so that no noise enters the error."""
    x = jnp.asarray(DATA[:64])
    seen = []

    def zero(noisy, sigma, label):
        seen.append((noisy, sigma, label))
        return jnp.zeros_like(noisy)

    key = jax.random.key(3)
    weights = {
        "x0": lambda s: 1.0 + 0.0 * s,
        "epsilon": lambda s: s**-2.0,
        "edm": lambda s: s**-2.0 + 2.0**-2,
    }
    for name, weight in weights.items():
        found = gg.denoising_loss(zero, key, x, weight=name, data_scale=2.0)
        noisy, sigma, label = seen[-1]
        wanted = np.mean(weight(np.asarray(sigma)) * np.asarray(x)[:, 0] ** 2)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        own = gg.denoising_loss(zero, key, x, weight=weight, data_scale=2.0)
        np.testing.assert_allclose(own, found, rtol=1e-5)
    assert label is None
    z = (np.asarray(noisy) - np.asarray(x))[:, 0] / np.asarray(sigma)
    assert abs(z.mean()) < 0.5 and abs(z.std() - 1) < 0.4  # standard normal noise
    levels = np.log(np.asarray(sigma) / 2.0)
    assert abs(levels.mean() + 0.8) < 0.8 and abs(levels.std() - 1.6) < 0.5


def test_the_loss_drops_labels():
    x, label, seen = jnp.zeros((400, 1)), jnp.ones(400, jnp.int32), []

    class Net(Affine):
        def __call__(self, x, sigma, label):
            seen.append(np.asarray(label))
            return x

    net = Net(*jax.tree.leaves(START))
    gg.denoising_loss(net, jax.random.key(0), x, label, label_dropout=0.25)
    assert set(seen[0]) == {1, 3} and abs((seen[0] == 3).mean() - 0.25) < 0.1
    with pytest.raises(ValueError, match="has no num_labels"):
        gg.denoising_loss(
            lambda x, s, k: x, jax.random.key(0), x, label, label_dropout=0.1
        )


def test_any_pytree_is_trained_and_integers_stay():
    """The minimum of the loss is the posterior mean of the data: their moments."""
    trained = gg.train(jax.random.key(0), START, DATA, FAST, progress=False)
    model = trained.network
    assert isinstance(model, Affine) and model.count == 7
    assert abs(model.mean - DATA.mean()) < 0.05
    assert abs(np.exp(model.log_variance / 2) - DATA.std()) < 0.08
    assert START.mean == 0.0 and len(trained.losses) == 1


def test_a_module_of_flax_learns_on_a_mixture():
    class Net(nnx.Module):
        num_labels, sample_shape = 2, (1,)

        def __init__(self, rngs):
            self.label = nnx.Embed(3, 16, rngs=rngs)
            self.inner = nnx.Linear(2, 16, rngs=rngs)
            self.outer = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x, sigma, label):
            level = jnp.log(jnp.broadcast_to(sigma, x.shape[:1]))[:, None] / 4.0
            hidden = self.inner(jnp.concatenate([x / 4.0, level], 1))
            return self.outer(nnx.silu(hidden + self.label(label)))

    network = gg.ProcessStack(Net(nnx.Rngs(0)), gg.VE(), "x0")
    assert repr(network) == "ProcessStack(Net(113 parameters), VE(), 'x0')"
    reports = []
    run = gg.train(
        jax.random.key(0),
        network,
        gg.presets.two_modes(),
        gg.FitConfig((300, 600), batch_size=128, learning_rate=0.02),
        loss=functools.partial(gg.denoising_loss, data_scale=4.0, label_dropout=0.1),
        progress=reports.append,
    )
    assert len(run.networks) == 2 and reports[-1].step == 600
    assert run.losses[1] < 0.5 * reports[0].loss
    value = run.network(jnp.full((1, 1), 3.9), jnp.full(1, 0.5), jnp.ones(1, jnp.int32))
    assert abs(value[0, 0] - 4.0) < 0.6


def test_what_cannot_be_trained_is_refused(key):
    with pytest.raises(ValueError, match="hides the arrays"):
        gg.train(key, lambda x, sigma, label: x, DATA, FAST)
    with pytest.raises(ValueError, match="equally many, got shapes"):
        gg.train(key, START, (DATA, DATA[:3]), FAST)
    with pytest.raises(ValueError, match="samples must be floating"):
        gg.train(key, START, np.zeros((3, 1), int), FAST)
    with pytest.raises(ValueError, match="one floating-point number"):
        gg.train(key, START, DATA, FAST, loss=lambda model, key, x: x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hidden = jnp.ones(3)
        readout = lambda hidden_state, context: hidden_state + hidden[0]  # noqa: E731
        stack = gg.stack_blocks(
            [jax.tree_util.Partial(lambda w, h, c: h * w, jnp.ones(()))],
            lambda x, t, label: (x, ()),
            readout,
        )
        assert repr(stack) == "BlockList(1 blocks, 1 parameters)"
        with pytest.raises(ValueError, match="one floating-point number"):
            gg.train(key, stack, DATA, FAST, loss=lambda model, key, x: x)
    assert "1 arrays, which are not trained" in str(caught[0].message)


def test_a_bar_is_shown_where_someone_looks(monkeypatch):
    from gmm_guidance.training import fit

    shown = []

    class Watching(fit.Reporter):
        def task(self, name, total):
            shown.append((name, total))
            return super().task(name, total)

    monkeypatch.setattr(fit, "Reporter", Watching)
    for watched, progress in [(False, None), (True, False), (True, None)]:
        monkeypatch.setattr(fit, "is_watched", lambda watched=watched: watched)
        assert not shown
        with fit._reporting(progress, 5) as report:
            report(gg.TrainingProgress(5, 5, 0.1, 1.0))
    assert shown == [("training", 5)]


def test_the_quick_configuration_is_small():
    config = gg.TrainingConfig.quick(prediction="epsilon")
    assert config.num_steps <= 2000 and config.prediction == "epsilon"
    network = gg.BlockMLP(config.network(gg.presets.two_modes()), rngs=nnx.Rngs(0))
    assert "\n" not in repr(network) and "4 blocks" in repr(network.as_stack())
