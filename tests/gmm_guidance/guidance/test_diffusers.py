"""Rules against the guiders of diffusers, fed the same tensors in the same space.

Where theirs is another rule the difference is asserted, with the reason.
"""

import importlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import (
    flow_velocity,
    from_flow_velocity,
    random_point,
    step,
    value,
)
from support.optional import Lazy, needs

from gmm_guidance import (
    APG,
    CFG,
    MAMBOG,
    TCFG,
    CFGZeroStar,
    RectifiedFlow,
    Rescaled,
    SkipLayer,
)
from gmm_guidance.guidance.updates import ZeroVelocity
from gmm_guidance.guidance.windows import Position

torch = Lazy("torch")
pytestmark = needs("torch", "diffusers")

POINTS = [random_point(seed, shape=(4, 3, 5)) for seed in range(3)]
POINT = POINTS[0]


def guider(module, name, **options):
    """A guider of diffusers, whose import may warn of this and that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(importlib.import_module(f"diffusers.guiders.{module}"), name)
        made = made(**options)
    made._step, made._num_inference_steps = 0, 10
    return made


def forward(made, cond, uncond):
    cond, uncond = (torch.tensor(np.asarray(a, np.float64)) for a in (cond, uncond))
    return made.forward(cond, uncond).pred.numpy()


def in_velocity(made, point):
    """Their result on velocities of the straight path, as D."""
    rows = [flow_velocity(d, point.x, point.sigma) for d in (point.cond, point.uncond)]
    return from_flow_velocity(forward(made, *rows), point.x, point.sigma)


def cfg(**options):
    return guider("classifier_free_guidance", "ClassifierFreeGuidance", **options)


def apg(**options):
    options = {"adaptive_projected_guidance_rescale": 0.0, "eta": 0.0, **options}
    return guider("adaptive_projected_guidance", "AdaptiveProjectedGuidance", **options)


def zero(**options):
    return guider(
        "classifier_free_zero_star_guidance",
        "ClassifierFreeZeroStarGuidance",
        **{"zero_init_steps": 0, **options},
    )


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [2.0, 7.5])
def test_cfg(scale):
    rows = POINT.cond, POINT.uncond
    close(value(CFG(scale), POINT), forward(cfg(guidance_scale=scale), *rows))
    original = cfg(guidance_scale=scale - 1, use_original_formulation=True)
    close(value(CFG(scale), POINT), forward(original, *rows))


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0])
def test_rescale(factor):
    made = cfg(guidance_scale=5.0, guidance_rescale=factor)
    wanted = forward(made, POINT.cond, POINT.uncond)
    close(value(Rescaled(CFG(5.0), factor), POINT), wanted)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("threshold", [None, 2.0, 50.0])
def test_apg_is_their_original_formulation(eta, threshold):
    """``D_c + g u`` with ``g = s - 1``; their 0 is no threshold."""
    made = apg(
        guidance_scale=3.0, use_original_formulation=True, eta=eta,
        adaptive_projected_guidance_rescale=threshold or 0.0,
    )  # fmt: skip
    rule = APG(4.0, eta, threshold, momentum=0.0)
    close(value(rule, POINT), forward(made, POINT.cond, POINT.uncond))


def test_apg_keeps_the_same_momentum():
    made = apg(
        guidance_scale=3.0, use_original_formulation=True,
        adaptive_projected_guidance_rescale=2.0,
        adaptive_projected_guidance_momentum=-0.75,
    )  # fmt: skip
    # What their prepare_inputs does at the first step.
    module = importlib.import_module("diffusers.guiders.adaptive_projected_guidance")
    made.momentum_buffer = module.MomentumBuffer(-0.75)
    rule, state = APG(4.0, 0.0, 2.0, -0.75), None
    for point in POINTS:
        got, state = step(rule, point, state)
        close(got, forward(made, point.cond, point.uncond))


def test_their_default_apg_is_another_rule():
    """``D_u + s u``: towards scale 1 it tends to ``D_u + u``, which is not D_c."""
    rows = POINT.cond, POINT.uncond
    near_one = forward(apg(guidance_scale=1.0001), *rows)
    assert np.abs(near_one - POINT.cond).max() > 0.1
    close(value(APG(jnp.asarray(1.0), momentum=0.0), POINT), POINT.cond)
    theirs, ours = forward(apg(guidance_scale=4.0), *rows), value(APG(4.0), POINT)
    assert np.abs(theirs - ours).max() > 0.1
    # They agree where nothing is projected away.
    close(
        value(APG(4.0, 1.0, momentum=0.0), POINT),
        forward(apg(guidance_scale=4.0, eta=1.0), *rows),
    )


@pytest.mark.parametrize("point", POINTS)
def test_zero_star(point):
    """In velocity, which a flow model feeds them; in D it would be another rule."""
    made = zero(guidance_scale=3.0)
    close(value(CFGZeroStar(3.0), point), in_velocity(made, point))
    raw = forward(made, point.cond, point.uncond)
    assert np.abs(raw - value(CFGZeroStar(3.0), point)).max() > 0.1


def test_zero_init():
    made = zero(guidance_scale=3.0, zero_init_steps=1)
    rule = CFGZeroStar(3.0).at(Position(0.0, POINT.sigma, 0, 10))
    assert isinstance(rule, ZeroVelocity)
    close(value_without_passes(rule, POINT), in_velocity(made, POINT))


def value_without_passes(rule, point):
    assert rule.passes(None, ()) == ()
    return rule.combine((), jnp.asarray(point.x), jnp.asarray(point.sigma), ())[0]


def test_their_rescaled_zero_step_is_not_a_number():
    """Zero has no spread: 0 std / 0. Ours leaves a step without a network alone."""
    made = zero(guidance_scale=3.0, zero_init_steps=1, guidance_rescale=0.7)
    assert np.isnan(in_velocity(made, POINT)).all()
    rule = Rescaled(CFGZeroStar(3.0)).at(Position(0.0, POINT.sigma, 0, 10))
    assert np.isfinite(value_without_passes(rule, POINT)).all()


@pytest.mark.parametrize("point", POINTS)
def test_tcfg(point):
    made = guider(
        "tangential_classifier_free_guidance",
        "TangentialClassifierFreeGuidance",
        guidance_scale=3.0,
    )
    close(value(TCFG(3.0, RectifiedFlow()), point), in_velocity(made, point))
    noise = [(point.x - d) / point.sigma for d in (point.cond, point.uncond)]
    close(value(TCFG(3.0), point), point.x - point.sigma * forward(made, *noise))


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_mambo(alpha):
    options = {"guidance_scale": 10.0, "alpha": alpha}
    made = guider("magnitude_aware_guidance", "MagnitudeAwareGuidance", **options)
    close(value(MAMBOG(10.0, alpha), POINT), in_velocity(made, POINT))


def test_their_skip_layer_window_is_silent_where_ours_is_an_error():
    """With 8 steps 1-20 % holds no step of theirs, by a strict lower bound."""
    slg = guider(
        "skip_layer_guidance", "SkipLayerGuidance", skip_layer_guidance_start=0.01,
        skip_layer_guidance_stop=0.2, skip_layer_config=layers(),
    )  # fmt: skip
    slg._num_inference_steps = 8
    active = []
    for slg._step in range(8):
        active.append(slg._is_slg_enabled())
    assert not any(active)
    # Ours: step 1 of 8 is at a share of 0.125 and inside; with 4 steps it is an error.
    inside = [
        SkipLayer(4.0, (1,)).at(Position(i / 8, 1.0, i, 8)) != CFG(4.0)
        for i in range(8)
    ]
    assert inside == [False, True, *[False] * 6]


def layers():
    hooks = importlib.import_module("diffusers.hooks")
    return hooks.LayerSkipConfig(indices=[1], fqn="transformer_blocks")
