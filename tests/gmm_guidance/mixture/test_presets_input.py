"""Every argument that a preset refuses, by its message."""

import jax
import pytest

from gmm_guidance import presets


def test_get_suggests_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'four_corners'"):
        presets.get("four_corner")
    with pytest.raises(ValueError, match="name must be one of two_modes, .*'zzz'"):
        presets.get("zzz")


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("two_modes", {"std": 0.0}, "std must be positive and finite, got 0.0"),
        ("two_modes", {"std": float("nan")}, "std must be positive and finite"),
        ("two_modes", {"mean": -4.0}, "mean must be positive and finite, got -4"),
        ("four_corners", {"std": -1.0}, "std must be positive and finite"),
        ("four_corners", {"mean": 0.0}, "mean must be positive and finite"),
        ("four_corners", {"labels": "rows"}, "labels must be one of 'corner'.*'rows'"),
        ("tree", {"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ("tree", {"depth": 2.5}, "depth must be an integer of at least 1, got 2.5"),
        ("tree", {"depth": True}, "depth must be an integer"),
        ("tree", {"components_per_branch": 0}, "components_per_branch must be"),
        ("tree", {"classes": 0}, "classes must be an integer of at least 1"),
        ("tree", {"seed": -1}, "seed must be an integer of at least 0"),
        ("tree", {"scale": 0.0}, "scale must be positive"),
        ("ring", {"num_modes": 0}, "num_modes must be an integer"),
        ("ring", {"radius": 0.0}, "radius must be positive"),
        ("ring", {"std": float("inf")}, "std must be positive and finite, got inf"),
        ("ring", {"num_labels": 9}, "num_labels must be at most num_modes = 8, got 9"),
        ("ring", {"num_labels": 0}, "num_labels must be an integer of at least 1"),
        ("grid", {"side": 0}, "side must be an integer of at least 1"),
        ("grid", {"spacing": -1.0}, "spacing must be positive"),
        ("grid", {"std": 0.0}, "std must be positive"),
        ("grid", {"labels": "color"}, "labels must be one of 'checkerboard'"),
        ("checkerboard", {"side": 1}, "side must be an integer of at least 2"),
        ("checkerboard", {"width": 0.0}, "width must be positive"),
        ("checkerboard", {"per_cell_side": 0}, "per_cell_side must be"),
        ("checkerboard", {"labels": "black"}, "labels must be one of 'color'"),
        ("random", {"key": -1}, "key must be an integer of at least 0"),
        ("random", {"key": 0, "num_components": 0}, "num_components must be"),
        ("random", {"key": 0, "dim": 0}, "dim must be an integer of at least 1"),
        ("random", {"key": 0, "num_labels": 9}, "at most num_components = 8"),
        ("random", {"key": 0, "spread": 0.0}, "spread must be positive"),
        ("random", {"key": 0, "std": 0.0}, "std must be positive"),
        ("random", {"key": 0, "condition_number": 0.5}, "condition_number must be"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        presets.get(name, **kwargs)


def test_random_refuses_what_is_no_key():
    with pytest.raises(TypeError, match="JAX random key"):
        presets.random("seed")
    with pytest.raises(ValueError, match="single key"):
        presets.random(jax.random.split(jax.random.key(0), 3))
