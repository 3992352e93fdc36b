"""The configuration of training: rates, the network it asks for, bad values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmm_guidance import GaussianMixture, TrainingConfig


def test_the_learning_rate_warms_up_and_decays():
    """Under a constant gradient Adam's update is the rate itself."""
    config = TrainingConfig(learning_rate=0.1, warmup_steps=10, decay_steps=40)
    parameter, gradient = jnp.zeros(3), jnp.full(3, 0.01)

    def step(state, _):
        with jax.numpy_dtype_promotion("standard"):
            update, state = config.optimizer().update(gradient, state, parameter)
        return state, -update[0]

    _, rates = jax.lax.scan(step, config.optimizer().init(parameter), length=400)
    for count, rate in ((1, 0.01), (5, 0.05), (10, 0.1), (40, 0.1), (160, 0.05)):
        assert rates[count - 1] == pytest.approx(rate, rel=1e-3)
    decaying = dataclasses.replace(config, weight_decay=0.5).optimizer()
    with jax.numpy_dtype_promotion("standard"):
        update, _ = decaying.update(jnp.zeros(3), decaying.init(parameter), jnp.ones(3))
    np.testing.assert_allclose(optax.apply_updates(jnp.ones(3), update), 0.995)


def test_the_network_is_set_from_the_mixture():
    network = TrainingConfig(width=16).network(
        GaussianMixture([[1.0, 0.0], [5.0, 2.0]], 1.0)
    )
    assert (network.dim, network.num_labels, network.width) == (2, 1, 16)
    assert network.data_mean == pytest.approx((3.0, 1.0))
    assert network.data_scale == pytest.approx(math.sqrt((4 + 1 + 1 + 1) / 2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"snapshots": ()}, "snapshots must be ascending"),
        ({"snapshots": (5, 3)}, r"snapshots must be ascending .* \(5, 3\)"),
        ({"snapshots": (5, 5)}, "snapshots must be ascending"),
        ({"snapshots": (0, 5)}, "snapshots must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"decay_steps": 0}, "decay_steps must be at least 1"),
        ({"target": "noise"}, "target must be 'samples' or 'exact', got 'noise'"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite, got nan"),
        ({"clip_norm": -1.0}, "clip_norm must be > 0"),
        ({"log_sigma_std": 0.0}, "log_sigma_std must be > 0"),
        ({"noise": "vp"}, "noise must be 'log_normal' or 'ddpm'"),
        ({"adam_b2": 1.0}, r"adam_b2 must be in \[0, 1\)"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\)"),
        ({"label_dropout": -0.1}, r"label_dropout must be in \[0, 1\)"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)
