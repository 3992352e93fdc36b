"""Training of DiTs: it learns, resumes exactly, and refuses bad data."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from oracles.dits import TINY

from full_models.models.dit.config import DIT
from full_models.training import DiTTraining, train_dit
from gmm_guidance._runtime.checkpoints import stored_steps
from gmm_guidance._runtime.interruption import Interrupted

SMALL = dataclasses.replace(TINY, depth=2, input_size=4, in_channels=1, num_labels=2)
TRAINING = DiTTraining(
    snapshots=(30, 60), batch_size=32, learning_rate=3e-3, warmup_steps=5
)


def data():
    """Two classes of constant images, -1 and 1."""
    labels = np.arange(16) % 2
    images = np.broadcast_to((2.0 * labels - 1)[:, None, None, None], (16, 4, 4, 1))
    return images.astype(np.float32), labels


@pytest.mark.ci
def test_noise_prediction_is_learned():
    """The next test trains a flow; this, a chain, whose variance channels idle."""
    losses = []
    train_dit(
        jax.random.key(0),
        *data(),
        dataclasses.replace(SMALL, **DIT, learn_sigma=True),
        dataclasses.replace(TRAINING, snapshots=(200,), ema_decay=0.9),
        progress=lambda progress: losses.append(progress.loss),
    )
    assert losses[0] < 1.1 and losses[-1] < 0.5 * losses[0]


@pytest.mark.ci
def test_continued_training_is_uninterrupted_training(tmp_path):
    losses = []
    whole = train_dit(
        jax.random.key(0),
        *data(),
        SMALL,
        TRAINING,
        progress=lambda progress: losses.append(progress.loss),
    )
    assert sorted(whole) == [30, 60] and losses[-1] < 0.8 * losses[0]
    path = tmp_path / "checkpoint"

    def stop(progress):
        if progress.step == 25:
            raise KeyboardInterrupt
        if progress.step == 55:
            os.kill(os.getpid(), signal.SIGTERM)

    for error, step in ((KeyboardInterrupt, 25), (Interrupted, 55)):
        with pytest.raises(error):
            train_dit(
                *(jax.random.key(0), *data(), SMALL, TRAINING),
                progress=stop,
                checkpoint=path,
            )
        assert stored_steps(path)[-1] == step
    with pytest.raises(ValueError, match="training.batch_size is 32, expected 16"):
        other = dataclasses.replace(TRAINING, batch_size=16)
        train_dit(jax.random.key(0), *data(), SMALL, other, checkpoint=path)
    again = train_dit(jax.random.key(0), *data(), SMALL, TRAINING, checkpoint=path)
    for found, wanted in zip(
        jax.tree.leaves(again), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    assert not path.exists()


def test_bad_input():
    images, labels = data()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[n, 4, 4, 1\], channels last"):
        train_dit(key, images[:, :2], labels, SMALL)
    with pytest.raises(ValueError, match=r"labels must be in 0..1, got 0 to 2"):
        train_dit(key, images, labels * 2, SMALL)
    with pytest.raises(ValueError, match="16 integers"):
        train_dit(key, images, labels[:3], SMALL)
