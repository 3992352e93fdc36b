"""Temporal statistics of videos whose values are known."""

import numpy as np
import pytest

from gmm_guidance.metrics import temporal_statistics

TIME = np.arange(7.0)[:, None, None, None]
SCENE = np.random.default_rng(0).normal(size=(8, 9, 3))


def test_an_even_change_has_no_flicker():
    found = temporal_statistics((SCENE - 0.25 * TIME)[None])
    np.testing.assert_allclose(found.frame_difference, [0.25], rtol=1e-12)
    np.testing.assert_allclose(found.flicker, [0.0], atol=1e-12)


def test_alternation_is_flicker_alone():
    still, alternating = SCENE + 0 * TIME, SCENE + 0.3 * (-1.0) ** TIME
    found = temporal_statistics(np.stack([still, alternating]))
    np.testing.assert_allclose(found.frame_difference, [0.0, 0.6], atol=1e-12)
    np.testing.assert_allclose(found.flicker, [0.0, 0.6], atol=1e-12)


def test_sharpness_of_waves():
    """cos(k x) is an eigenfunction of the Laplacian of the grid, by 2 cos(k) - 2."""
    k = 2 * np.pi * 3 / 16
    column = np.arange(18.0)  # whole periods without both edges
    fine = np.cos(k * column)[None, :, None] * np.ones((6, 1, 3))
    videos = np.stack([fine * np.ones((4, 1, 1, 1)), np.full((4, 6, 18, 3), 7.0)])
    wanted = (2 * np.cos(k) - 2) ** 2 / 2
    found = temporal_statistics(videos).sharpness
    np.testing.assert_allclose(found, [[wanted] * 4, [0.0] * 4], atol=1e-12)
    gray = temporal_statistics(videos[..., :1]).sharpness
    np.testing.assert_allclose(gray, found, atol=1e-12)


def test_bytes_do_not_wrap():
    frames = np.zeros((1, 3, 4, 4, 1), np.uint8)
    frames[:, 1] = 255
    found = temporal_statistics(frames)
    assert (found.frame_difference[0], found.flicker[0]) == (255.0, 255.0)


@pytest.mark.parametrize(
    "shape", [(3, 4, 4, 3), (1, 2, 4, 4, 3), (1, 3, 2, 4, 3), (1, 3, 4, 4, 2)]
)
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"\[n, F, H, W, 1 or 3\].*at least 3 frames"):
        temporal_statistics(np.zeros(shape))
    with pytest.raises(ValueError, match="videos must be finite"):
        temporal_statistics(np.full((1, 3, 3, 3, 1), np.nan))
