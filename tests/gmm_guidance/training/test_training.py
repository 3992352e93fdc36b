"""Training: what is learnt, against closed forms, and how a run is continued."""

import dataclasses
import os
import re
import signal

import jax
import numpy as np
import pytest
from oracles.two_classes import draws, posterior

from gmm_guidance import (
    GaussianMixture,
    TrainedDenoiser,
    TrainingConfig,
    train_denoiser,
    train_denoisers,
)
from gmm_guidance._runtime.checkpoints import Checkpoints, stored_steps
from gmm_guidance._runtime.interruption import Interrupted
from gmm_guidance._runtime.tensor_files import named_leaves

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


def test_the_steps_may_be_taken_in_portions_of_any_size(run, capsys, monkeypatch):
    """And a progress bar can be shown."""
    monkeypatch.setattr("gmm_guidance.training.fit._STEPS_PER_CALL", 70)
    monkeypatch.setattr("gmm_guidance._runtime.progress._SECONDS_BETWEEN_LINES", -1.0)
    leaves = (jax.tree.leaves(r.networks) for r in (run, train(progress=True)))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("training", "500/500", "steps/s"))
    assert re.search(r"loss \d\.\d{4}\b", shown)


def test_averages_of_the_weights_are_kept(run, monkeypatch):
    """Step by step, in what checkpoints are offered."""
    states = []

    def save_if_due(self, step, tree):
        states.append({n: np.asarray(leaf) for n, leaf in named_leaves(tree).items()})
        if step == 21:
            raise RuntimeError

    monkeypatch.setattr(Checkpoints, "save_if_due", save_if_due)
    monkeypatch.setattr("gmm_guidance.training.fit._STEPS_PER_CALL", 1)
    with pytest.raises(RuntimeError):
        train()
    assert len(states) == 21
    names = [n.removeprefix("0.network.") for n in states[0] if "0.network." in n]
    assert len(names) == len(jax.tree.leaves(run.networks[0]))
    for name in names:
        average = states[0][f"0.average.{name}"]
        for step, state in enumerate(states[1:], start=2):
            decay = step / (step + 9)  # shorter memory at the start
            average = decay * average + (1 - decay) * state[f"0.network.{name}"]
        np.testing.assert_allclose(
            states[-1][f"0.average.{name}"], average, rtol=1e-4, atol=1e-6
        )
        kept = states[19][f"1.networks.0.{name}"]
        np.testing.assert_array_equal(kept, states[19][f"0.average.{name}"])
        assert (kept != states[19][f"0.network.{name}"]).any()


# --- progress


def test_progress_is_reported(run, reports):
    steps = [report.step for report in reports]
    assert steps == sorted(set(steps)) and set(CONFIG.snapshots) <= set(steps)
    assert {report.num_steps for report in reports} == {500}
    assert all(report.steps_per_second > 0 for report in reports)
    assert reports[-1].loss == pytest.approx(float(run.losses[-1].mean()), rel=1e-5)


# --- continuation


def stop_at(step, error):
    def report(progress):
        if progress.step >= step:
            raise error

    return report


def interrupt(path, step=120, error=KeyboardInterrupt):
    with pytest.raises(error):
        train(progress=stop_at(step, error), checkpoint=path)


@pytest.mark.parametrize("error, step", [(KeyboardInterrupt, 20), (RuntimeError, 350)])
def test_continued_training_is_uninterrupted_training(
    run, tmp_path, monkeypatch, error, step
):
    """Interrupted: saved at once. Killed: saved now and then."""
    if error is RuntimeError:
        monkeypatch.setattr("gmm_guidance.training.fit._CHECKPOINT_SECONDS", -1.0)
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


def test_a_signal_ends_training_where_it_can_be_continued(run, tmp_path):
    """The steps in work are finished, and saved."""
    number = signal.SIGTERM
    path, reports = tmp_path / "checkpoint", []

    def report(progress):
        reports.append(progress.step)
        if progress.step == 120:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=number.name):
        train(progress=report, checkpoint=path)
    assert reports[-1] == 120 and stored_steps(path) == [120]
    continued = train(checkpoint=path)
    assert not path.exists()
    one, two = (jax.tree.leaves((r.networks, r.losses)) for r in (run, continued))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.ci  # another program of training
def test_a_resumed_run_keeps_points_and_dropped_blocks(tmp_path):
    options = {"prediction": "velocity", "block": "plain", "block_dropout": 0.3}
    config = TrainingConfig(
        snapshots=(6, 12), batch_size=16, width=8, num_blocks=2, num_points=20
    )
    config = dataclasses.replace(config, **options)
    whole = train_denoisers(KEYS, MIXTURE, config)
    path, stop = tmp_path / "checkpoint", stop_at(6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train_denoisers(KEYS, MIXTURE, config, progress=stop, checkpoint=path)
    for change in ({"num_points": 21}, {"block_dropout": 0.2}, {"block": "prenorm"}):
        other = dataclasses.replace(config, **change)
        with pytest.raises(ValueError, match="another run"):
            train_denoisers(KEYS, MIXTURE, other, checkpoint=path)
    continued = train_denoisers(KEYS, MIXTURE, config, checkpoint=path)
    one, two = (jax.tree.leaves((r.networks, r.losses)) for r in (whole, continued))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    path = tmp_path / "checkpoint"
    interrupt(path)
    before = contents(path)
    for keys, mixture, message in (
        (KEYS[::-1], MIXTURE, "another run: key is"),
        (KEYS, GaussianMixture([[-2.0], [2.0]], 1.0, labels=[1, 0]), "data is"),
    ):
        with pytest.raises(ValueError, match=f"{message} .*Delete it"):
            train(keys, mixture, checkpoint=path)
    message = r"another run: training\.learning_rate is 0\.003, expected 0\.5\. Delete"
    with pytest.raises(ValueError, match=message):
        config = dataclasses.replace(CONFIG, learning_rate=0.5)
        train_denoisers(KEYS, MIXTURE, config, checkpoint=path)
    assert contents(path) == before


def test_a_truncated_or_foreign_checkpoint_is_refused(run, tmp_path):
    path = tmp_path / "checkpoint"
    interrupt(path)
    for file, content in contents(path).items():
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="all checkpoints in .* are damaged"):
        train(checkpoint=path)
    path = tmp_path / "denoiser"
    run.denoiser().save(path)
    with pytest.raises(ValueError, match="must be a folder"):
        train(checkpoint=path)
    assert TrainedDenoiser.load(path).step == 500  # and is still there


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gmm_guidance.training.fit._CHECKPOINT_SECONDS", -1.0)
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OSError, match="must be writable.*File exists"):
        train(checkpoint=blocked / "checkpoint")
    assert list(tmp_path.iterdir()) == [blocked]


def test_a_raw_seed_is_no_key():
    with pytest.raises(TypeError, match=r"make one with .*jax\.random\.key"):
        train_denoiser(0, MIXTURE, CONFIG)
