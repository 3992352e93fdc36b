"""Every request that ``guided_sample``, a rule or a schedule refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    CFG,
    AutoGuidance,
    ExactDenoiser,
    Karras,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    guided_sample,
    presets,
)

KEY = jax.random.key(0)
CORNERS = ExactDenoiser(presets.four_corners())
STACK = ToyStack.random(num_blocks=3)


def draw(denoiser=CORNERS, label=1, key=KEY, num_samples=4, **options):
    options = {"schedule": Karras(2), **options}
    return guided_sample(key, denoiser, label, num_samples=num_samples, **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"key": 0}, TypeError, r"must be a JAX random key, got int.*key\(seed\)"),
        ({"key": jax.random.split(KEY)}, ValueError, r"single key.*shape \(2,\)"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"first_index": -1}, ValueError, "first_index must be at least 0, got -1"),
        ({"label": 5}, ValueError, r"label must be in 0\.\.3 or 4 .*got \[5\]"),
        ({"label": -1}, ValueError, r"label must be in 0\.\.3.*got \[-1\]"),
        ({"label": np.array([0, 9, 1, 7])}, ValueError, r"got \[7, 9\]"),
        (
            {"label": np.array([0, 1])},
            ValueError,
            r"shape \(4,\).*shape \(2,\)",
        ),
        ({"label": 1.0}, ValueError, "label must be an integer, got dtype float"),
        ({"label": True}, ValueError, "label must be an integer, got dtype bool"),
        ({"solver": "huen"}, ValueError, "got 'huen'. Did you mean 'heun'"),
        ({"initial": np.zeros((3, 2))}, ValueError, r"shape \(4, 2\), got \(3, 2\)"),
        ({"initial": np.zeros((4, 3))}, ValueError, r"shape \(4, 2\), got \(4, 3\)"),
    ],
)
def test_bad_requests(options, error, message):
    with pytest.raises(error, match=message):
        draw(**options)


@pytest.mark.parametrize(
    "rule",
    [
        CFG(2.0),
        Windowed(CFG(2.0), (0.0, 0.5)),
        Windowed(Unguided(), (0.0, 0.5), outside=CFG(2.0)),
        S2Guidance(2.0),
        SkipLayer(2.0, (1,), window=None),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_guide_towards_a_label_need_one(rule):
    name = type(rule).__name__
    with pytest.raises(ValueError, match=f"{name} guides towards a label, got label="):
        draw(STACK, None, guidance=rule)


def test_rules_without_an_unconditional_pass_need_no_label():
    """Nor do rules that are off: with no label they are unconditional."""
    wanted = draw(label=None)
    for rule in (AutoGuidance(CORNERS, 2.0), CFG(1.0), S2Guidance(1.0, 0.0)):
        np.testing.assert_allclose(draw(label=None, guidance=rule), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        S2Guidance(2.0, window=None),
        S2Guidance(1.0, s2_scale=0.3, num_masks="all", window=None),
        SkipLayer(2.0, (1,), window=(0.0, 0.5)),
        Windowed(S2Guidance(2.0, window=None), (0.0, 0.5)),
    ],
    ids=["S2", "all masks", "SkipLayer", "Windowed"],
)
@pytest.mark.parametrize(
    "denoiser", [CORNERS, lambda x, sigma, label: x], ids=["exact", "function"]
)
def test_rules_that_drop_blocks_need_a_model_of_blocks(rule, denoiser):
    with pytest.raises(TypeError, match="drops blocks.*BlockStack.*none .CFG, Auto"):
        draw(denoiser, guidance=rule, sample_shape=(2,))


def test_the_shape_of_a_sample_must_be_known():
    with pytest.raises(ValueError, match="shape of a sample is unknown: function has"):
        draw(lambda x, sigma, label: x)


def test_parts_of_a_denoiser_are_arrays_or_hashable():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Odd:
        names: object

        def __call__(self, x, sigma, label):
            return x

    with pytest.raises(TypeError, match="unhashable set. Register its class as a pytr"):
        draw(Odd({"a"}), sample_shape=(2,))
