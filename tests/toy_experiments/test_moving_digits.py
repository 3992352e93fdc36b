"""The moving digits: motions, captions, and the comparison of rules in miniature."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the digits extra: scikit-learn")

import gmm_guidance as gg
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.progress import Reporter
from toy_experiments import moving_digits as experiment
from toy_experiments.common.store import Store
from toy_experiments.common.style import figure_style
from toy_experiments.digits import load_digits


@pytest.fixture(scope="module")
def videos():
    data = load_digits()
    made, labels = experiment.moved(data.train_images[:20], data.train_labels[:20])
    assert (labels % 10 == np.tile(data.train_labels[:20], 8)).all()
    return dict(zip(experiment.MOTIONS, made.reshape(8, 20, 9, 12, 12), strict=True))


def moments(frames):
    """Ink, its center (row, column) and its spread, of frames ``[..., 12, 12]``."""
    ink = frames + 1.0
    total = ink.sum((-2, -1))
    rows, columns = np.mgrid[:12, :12]
    center = [(ink * grid).sum((-2, -1)) / total for grid in (rows, columns)]
    spread = (ink * (rows**2 + columns**2)).sum((-2, -1)) / total
    return total, *center, spread - center[0] ** 2 - center[1] ** 2


def test_each_motion_moves_as_its_words_say(videos):
    paths = {name: [m.mean(0) for m in moments(v)] for name, v in videos.items()}
    for name, axis, sign in (
        ("moving left", 2, -1.0),
        ("moving right", 2, 1.0),
        ("moving up", 1, -1.0),
        ("moving down", 1, 1.0),
    ):
        path = paths[name][axis]
        # Two pixels to each side; a little ink leaves the frame.
        assert path[-1] - path[0] == pytest.approx(sign * 4.0, abs=0.2), name
        other = paths[name][3 - axis]
        assert np.ptp(other) < 0.1
    assert paths["growing"][3][-1] > 2.0 * paths["growing"][3][0]
    assert paths["shrinking"][3][-1] < 0.5 * paths["shrinking"][3][0]
    # Turning back undoes turning; the middle frame is the image under every motion.
    left, right = videos["turning left"], videos["turning right"]
    np.testing.assert_allclose(left, right[:, ::-1], atol=1e-6)
    for name, video in videos.items():
        np.testing.assert_allclose(video[:, 4], left[:, 4], atol=1e-6, err_msg=name)


def test_latents_and_captions_are_those_of_the_videos(videos):
    video = videos["growing"]
    latents = experiment.to_latents(video)
    assert latents.shape == (20, 3, 12, 12, 3)
    np.testing.assert_array_equal(latents[:, 1, ..., 2], video[:, 5])
    np.testing.assert_array_equal(experiment.to_videos(latents), video)
    table = experiment.embedded_captions(experiment._NETWORK)
    assert len(np.unique(table.reshape(len(table), -1), axis=0)) == 81
    assert experiment.CAPTIONS[13] == "three moving right"


@pytest.mark.ci
def test_a_miniature_of_the_experiment(tmp_path):
    network = dataclasses.replace(
        experiment._NETWORK, width=16, depth=2, num_heads=1, mlp_width=16
    )
    config = experiment.MovingDigitsConfig(
        num_samples=80,
        num_steps=2,
        network=network,
        training=dataclasses.replace(
            experiment._TRAINING, snapshots=(2,), batch_size=8
        ),
        scales=(2.0,),
        s2_scales=(0.5,),
    )
    tables, data = experiment.compute(config, Store(tmp_path, Reporter()))
    (real,) = tables["real"]
    assert real["both"] > 0.8  # the classifiers read held-out videos
    by_rule = {r["rule"]: r for r in tables["settings"]}
    (paired,) = tables["paired"]
    change = by_rule["s2"]["flicker"]["mean"] - by_rule["cfg"]["flicker"]["mean"]
    assert paired["flicker"]["mean"] == pytest.approx(change)
    low, high = paired["flicker"]["interval_95"]
    assert low < change < high
    record = jsonable({"seeds": 2, "config": dataclasses.asdict(config)})
    metrics = record | {"tables": jsonable(tables)}
    with figure_style():
        figures = experiment.draw(metrics, data)
    assert set(figures) == {"figure", "sheet"}
    assert "minus CFG" in experiment.summarize(metrics)[-1]
    assert experiment.page(metrics).count("figures/moving_digits") == 2


def test_input_is_checked():
    with pytest.raises(ValueError, match="multiple of the 80 captions, got 100"):
        experiment.MovingDigitsConfig(num_samples=100)
    with pytest.raises(ValueError, match="at most 4000"):
        experiment.MovingDigitsConfig(num_samples=4080)
    assert isinstance(experiment.EXPERIMENT.config(), experiment.MovingDigitsConfig)
    assert gg.FitConfig is type(experiment._TRAINING)
