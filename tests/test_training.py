"""Training: what is learnt, against closed forms, and how a run is continued."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from oracles.two_classes import draws, posterior

from gmm_guidance import (
    GaussianMixture,
    TrainedDenoiser,
    TrainingConfig,
    train_denoiser,
    train_denoisers,
)

MIXTURE = GaussianMixture([[-2.0], [2.0]], 1.0, labels=[0, 1])
KEYS = jax.random.split(jax.random.key(0), 2)
CONFIG = TrainingConfig(
    snapshots=(20, 150, 500),
    batch_size=128,
    width=16,
    num_blocks=2,
    target="exact",
    label_dropout=0.25,
)
SAMPLES = dataclasses.replace(CONFIG, target="samples")


def train(keys=KEYS, mixture=MIXTURE, **options):
    return train_denoisers(keys, mixture, CONFIG, **options)


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def run(reports):
    return train(progress=reports.append)


@pytest.fixture(scope="module")
def sample_reports():
    return []


@pytest.fixture(scope="module")
def on_samples(sample_reports):
    key = jax.random.key(5)
    return train_denoiser(key, MIXTURE, SAMPLES, progress=sample_reports.append)


# --- what is learnt


@jax.jit
def evaluate(denoiser, x, sigma, label):
    return denoiser(x, sigma, label)


def excess(network, dropout=0.25):
    """Loss of a network above the least possible one."""
    x, sigma, label, weight = draws(dropout)
    args = (np.float32(x)[:, None], np.float32(sigma), np.int32(label))
    got = np.asarray(evaluate(network, *args), np.float64)[:, 0]
    return float(np.mean(weight * (got - posterior(x, sigma, label)[0]) ** 2))


def test_the_exact_denoiser_is_learnt(run):
    for seed in (0, 1):
        steps = [excess(run.denoiser(seed, s).network) for s in CONFIG.snapshots]
        assert steps[0] > 2 * steps[1] > 4 * steps[2]
        assert steps[2] < 0.03
    for losses in np.array(run.losses).T:
        assert losses[0] > 3 * losses[1] > losses[2] > 0


def test_the_loss_is_the_distance_to_the_target(run, on_samples, sample_reports):
    """With samples as targets their posterior variance remains, known exactly."""
    x, sigma, label, weight = draws(0.25)
    least = np.mean(weight * posterior(x, sigma, label)[1])
    assert sample_reports[-1].loss == pytest.approx(least, rel=0.1)
    assert np.max(run.losses[-1]) < 0.1 * least


def test_samples_teach_the_exact_denoiser(run, on_samples):
    start = excess(run.denoiser(0, 20).network)
    assert excess(on_samples.network) < min(0.06, start / 4)
    assert (on_samples.step, on_samples.config) == (500, SAMPLES)


def test_the_null_label_is_learnt_as_no_condition(run):
    network = run.denoiser().network
    only_null, never = excess(network, 1.0), excess(network, 0.0)
    assert only_null < 0.06 and never < 0.06
    x, sigma, _, weight = draws(1.0)
    exact = [posterior(x, sigma, np.full(len(x), c))[0] for c in (0, 2)]
    assert np.mean(weight * (exact[0] - exact[1]) ** 2) > 1.0  # they do differ


def test_a_seed_depends_on_its_key_alone(run):
    swapped = train(KEYS[::-1])
    assert excess(run.denoiser(0).network) != excess(run.denoiser(1).network)
    for step in CONFIG.snapshots:
        for seed in (0, 1):
            one, two = run.denoiser(seed, step), swapped.denoiser(1 - seed, step)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# --- progress


def test_progress_is_reported(run, reports):
    steps = [report.step for report in reports]
    assert steps == sorted(set(steps)) and set(CONFIG.snapshots) <= set(steps)
    assert {report.num_steps for report in reports} == {500}
    assert all(report.steps_per_second > 0 for report in reports)
    assert reports[-1].loss == pytest.approx(float(run.losses[-1].mean()), rel=1e-5)


def test_a_progress_bar_can_be_shown(run, capsys):
    train(progress=True)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("training", "500/500", "loss 0.", "steps/s"))


# --- continuation


def stop_at(step, error):
    def report(progress):
        if progress.step >= step:
            raise error

    return report


def interrupt(path, step=120, error=KeyboardInterrupt):
    with pytest.raises(error):
        train(progress=stop_at(step, error), checkpoint=path)


@pytest.mark.parametrize(
    "error, step",
    [
        (KeyboardInterrupt, 20),
        (KeyboardInterrupt, 250),
        (RuntimeError, 150),
        (RuntimeError, 350),
    ],
)
def test_continued_training_is_uninterrupted_training(
    run, tmp_path, monkeypatch, error, step
):
    """Interrupted: saved at once. Killed: saved now and then."""
    if error is RuntimeError:
        monkeypatch.setattr("gmm_guidance.training._CHECKPOINT_SECONDS", -1.0)
    path, reports = tmp_path / "checkpoint", []
    interrupt(path, step, error)
    assert list(tmp_path.iterdir()) == [path]
    continued = train(progress=reports.append, checkpoint=path)
    if error is KeyboardInterrupt:
        assert reports[0].step > step
    else:  # done again from the last saved state
        assert reports[0].step == step
    assert not any(tmp_path.iterdir())
    one, two = (jax.tree.leaves((r.networks, r.losses)) for r in (run, continued))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def edit(path, change):
    """Rewrite the description of a file, not its arrays."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    description = json.loads(metadata["description"])
    change(description)
    arrays = safetensors.numpy.load_file(path)
    metadata = {"description": json.dumps(description)}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    path = tmp_path / "checkpoint"
    interrupt(path)
    content = path.read_bytes()
    for keys, mixture, message in (
        (KEYS[::-1], MIXTURE, "another run: keys is"),
        (KEYS, GaussianMixture([[-2.0], [2.0]], 1.0, labels=[1, 0]), "mixture is"),
    ):
        with pytest.raises(ValueError, match=f"{message} .*Delete it"):
            train(keys, mixture, checkpoint=path)
    assert path.read_bytes() == content

    edit(path, lambda found: found["training"].update(learning_rate=0.5))
    message = r"another run: training\.learning_rate is 0\.5, expected 0\.003\. Delete"
    with pytest.raises(ValueError, match=message):
        train(checkpoint=path)


def test_a_truncated_or_foreign_checkpoint_is_refused(run, tmp_path):
    path = tmp_path / "checkpoint"
    interrupt(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        train(checkpoint=path)
    run.denoiser().save(path)
    with pytest.raises(ValueError, match="another run: .*kind is .*TrainedDenoiser"):
        train(checkpoint=path)
    assert TrainedDenoiser.load(path).step == 500  # and is still there


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("gmm_guidance.training._CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        train(checkpoint=tmp_path / "checkpoint")
    assert not any(tmp_path.iterdir())


# --- configuration


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
    network = CONFIG.network(GaussianMixture([[1.0, 0.0], [5.0, 2.0]], 1.0))
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
        ({"learning_rate": math.nan}, "learning_rate must be > 0, got nan"),
        ({"clip_norm": -1.0}, "clip_norm must be > 0"),
        ({"log_sigma_std": 0.0}, "log_sigma_std must be > 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\)"),
        ({"label_dropout": -0.1}, r"label_dropout must be in \[0, 1\)"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_a_raw_seed_is_no_key():
    with pytest.raises(TypeError, match=r"make one with .*jax\.random\.key"):
        train_denoiser(0, MIXTURE, CONFIG)
