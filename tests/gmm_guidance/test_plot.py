"""Figures show the numbers that they are given."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gmm_guidance as gg

LINE = gg.presets.two_modes()
PLANE = gg.presets.four_corners()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_histogram_and_its_density_have_area_one(key):
    x, _ = LINE.sample(key, 3000)
    figure, ax = gg.plot.samples({"cfg": x, "s2": x + 1}, LINE)
    edges = [np.asarray(patch.get_xy()) for patch in ax.patches]
    assert len(edges) == 2
    for corners in edges:  # shoelace formula
        a, b = corners.T
        assert abs(np.dot(a, np.roll(b, 1)) - np.dot(b, np.roll(a, 1))) / 2 == (
            pytest.approx(1.0, rel=1e-5)
        )
    outline = ax.collections[0].get_paths()[0].vertices
    inside = outline[outline[:, 1] > 0]
    area = np.trapezoid(*np.unique(inside, axis=0).T[::-1])
    assert area == pytest.approx(1.0, rel=1e-3)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["truth", "cfg", "s2"]
    assert ax.get_ylim()[1] >= max(corners[:, 1].max() for corners in edges)


def test_the_departure_of_the_exact_denoiser_is_nothing_and_of_cfg_its_update():
    rules = {"none": gg.Unguided(), "CFG": gg.CFG(3.0)}
    exact = gg.ExactDenoiser(PLANE)
    _, axes = gg.plot.field(
        exact, rules, PLANE, 3, sigmas=(1.0, 4.0), of="departure", grid=9
    )
    assert axes.shape == (2, 2)
    assert np.abs(axes[0, 0].images[0].get_array()).max() < 1e-5
    image = axes[1, 1].images[0]
    left, _, bottom, _ = image.get_extent()
    x = jnp.array([[left, bottom]], jnp.float32)  # the lower left corner of the grid
    update = 2.0 * (PLANE.denoise(x, 4.0, 3) - PLANE.denoise(x, 4.0)) / 4.0
    expected = float(jnp.linalg.norm(update))
    assert image.get_array()[0, 0] == pytest.approx(expected, rel=1e-4)


def test_states_of_a_normal_have_constant_spread():
    """x0 + sigma noise of a normal of std s: the scaled states have the spread s."""
    mixture = gg.GaussianMixture(jnp.zeros((1, 1)), jnp.full(1, 4.0))
    sigmas = np.array([80.0, 2.0, 0.1, 0.0])
    normal = np.random.default_rng(0).standard_normal((4, 20000, 1))
    path = normal * np.sqrt(4.0 + sigmas**2)[:, None, None]
    _, ax = gg.plot.trajectories(path, sigmas, mixture, num_paths=20000)
    drawn = np.array([line.get_xdata() for line in ax.lines])
    np.testing.assert_allclose(drawn.std(0), 2.0, rtol=0.02)


def test_an_animation_has_a_frame_for_each_state(key, tmp_path):
    schedule = gg.Karras(num_steps=3)
    exact = gg.ExactDenoiser(PLANE)
    _, path = gg.guided_sample(
        key, exact, 1, num_samples=4, schedule=schedule, solver="euler", trajectory=True
    )
    animation = gg.plot.animate(path, schedule.sigmas(), PLANE, 1)
    animation.save(tmp_path / "a.gif", writer="pillow", dpi=40)
    from PIL import Image

    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: gg.plot.samples(np.zeros((3, 3))), "1 and 2 dimensions are drawn"),
        (lambda: gg.plot.samples(np.full((3, 1), np.nan)), "finite"),
        (lambda: gg.plot.samples(np.zeros(3)), r"\[n, d\]"),
        (lambda: gg.plot.field(jnp.sin, {}, PLANE), "rules must not be empty"),
        (lambda: gg.plot.field(jnp.sin, {"a": gg.CFG(2)}, LINE), "2 dimensions"),
        (lambda: gg.plot.trajectories(np.zeros((3, 2, 1)), np.ones(2), LINE), "level"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_completion_shows_public_names():
    assert "plot" in dir(gg) and not [name for name in dir(gg) if name[0] == "_"]
