"""What hooks of users return is checked where it is traced: class, hook, remedy."""

import jax
import jax.numpy as jnp
import pytest

import gmm_guidance as gg


def rule(**hooks):
    """A rule of class ``MyRule`` with some of its hooks replaced."""
    members = {
        "passes": lambda self, label, draws: (gg.Pass(None), gg.Pass(label)),
        "combine": lambda self, outputs, x, sigma, state: (outputs[1], state),
    }
    return gg.guidance_rule(type("MyRule", (gg.GuidanceRule,), members | hooks))()


class Network:
    """A ``Backbone`` of width 2."""

    num_blocks = 2

    def embed(self, x_t, time, label):
        return x_t, ()

    def segment_block(self, segment, index, hidden, context):
        return 0.9 * hidden

    def readout(self, hidden, context):
        return hidden


class NoTuple(Network):
    def embed(self, x_t, time, label):
        return x_t


class Wide(Network):
    def readout(self, hidden, context):
        return jnp.concatenate([hidden, hidden[:, :1]], axis=1)


class Narrow(Network):
    def segment_block(self, segment, index, hidden, context):
        return hidden[:, :1]


class NoReadout:
    num_blocks, sample_shape = 3, (2,)

    def embed(self, x, sigma, label):
        return x, ()

    def block(self, index, hidden, context):
        return hidden

    def __call__(self, x, sigma, label):
        return x


class MySolver:
    def num_evaluations(self, is_final):
        return 1

    def init(self, x):
        return ()

    def step(self, denoise, x, step, carry, state):
        return denoise(x, step.sigma, state, 0)


class BadCarry(MySolver):
    def step(self, denoise, x, step, carry, state):
        x, state = denoise(x, step.sigma, state, 0)
        return x, (x,), state


def plain(x, sigma, label):
    return x / (1.0 + sigma)


def branching(x, sigma, label):
    return x if sigma > 1.0 else 0.5 * x


def stack(network):
    return gg.ProcessStack(network, gg.DDPM(), "epsilon")


def returning(value):
    return rule(combine=lambda self, outputs, x, sigma, state: value(outputs, state))


CASES = {
    "rule: no tuple": (
        plain,
        returning(lambda o, s: o[1]),
        r"MyRule.combine must ret.*Return \(value, state\)",
    ),
    "rule: in a wrapper": (
        plain,
        gg.Rescaled(returning(lambda o, s: o[1])),
        "MyRule.combine must return the tuple",
    ),
    "rule: renoised alone": (
        plain,
        returning(lambda o, s: gg.Renoised(*o)),
        "MyRule.combine must return the tuple",
    ),
    "rule: shape": (
        plain,
        returning(lambda o, s: (o[1].sum(1), s)),
        r"MyRule.combine .* of x, \(4, 2\), got float32\[4\]",
    ),
    "rule: state forgotten": (
        plain,
        rule(
            init=lambda self, x: jnp.zeros_like(x),
            combine=lambda self, o, x, sigma, state: (o[1], ()),
        ),
        r"MyRule.combine must return a state like .* float32\[4, 2\], got \(\)",
    ),
    "rule: branch": (
        plain,
        rule(
            combine=lambda self, o, x, sigma, state: (
                o[1] if sigma > 1 else o[0],
                state,
            )
        ),
        r"\(test_hooks.py, line \d+\) needs the value .*jnp.where .* at\(position\)",
    ),
    "rule: passes": (
        plain,
        rule(passes=lambda self, label, draws: (label,)),
        "MyRule.passes must return a tree of Pass",
    ),
    "rule: no passes": (
        plain,
        rule(passes=lambda self, label, draws: None),
        "MyRule.passes .* got NoneType",
    ),
    "rule: at": (
        plain,
        rule(at=lambda self, position: None),
        "MyRule.at must return a guidance rule",
    ),
    "denoiser: branch": (
        branching,
        gg.CFG(2.0),
        r"branching \(test_hooks.py, line \d+\) needs the value",
    ),
    "stack: member": (
        NoReadout(),
        gg.S2Guidance(2.0),
        "NoReadout is no BlockStack, since it has no readout",
    ),
    "stack: no tuple": (
        stack(NoTuple()),
        gg.CFG(2.0),
        r"NoTuple.embed must return the tuple \(hidden, context\)",
    ),
    "stack: width": (stack(Wide()), gg.CFG(2.0), r"Wide.readout .* got \(4, 3\)"),
    "stack: state": (
        stack(Narrow()),
        gg.CFG(2.0),
        r"Narrow.segment_block must return the state .*float32\[4, 1\]",
    ),
    "network: width": (
        stack(lambda x, time, label: x[:, :1]),
        gg.CFG(2.0),
        r"<lambda> must return a prediction .* got \(4, 1\)",
    ),
}


@pytest.mark.parametrize("denoiser, guidance, message", CASES.values(), ids=CASES)
def test_what_a_hook_returns_is_refused_by_name(denoiser, guidance, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gg.guided_sample(
            jax.random.key(0),
            denoiser,
            1,
            num_samples=4,
            guidance=guidance,
            schedule=gg.Karras(2),
            solver="euler",
            sample_shape=(2,),
        )


@pytest.mark.parametrize(
    "solver, message",
    [
        (MySolver(), r"MySolver.step must return the tuple \(samples, carry, state\)"),
        (BadCarry(), "BadCarry.step must return the carry in the structure"),
    ],
)
def test_what_a_solver_returns_is_refused_by_name(solver, message):
    with pytest.raises(TypeError, match=message):
        gg.guided_sample(
            jax.random.key(0),
            plain,
            num_samples=4,
            solver=solver,
            schedule=gg.Karras(2),
            sample_shape=(2,),
        )


def test_points_are_checked_alike():
    x = jnp.ones((4, 2))
    with pytest.raises(TypeError, match=r"branching \(test_hooks.py"):
        gg.guided_denoise(branching, gg.CFG(2.0), x, 1.0, 1)
    with pytest.raises(TypeError, match="NoReadout is no BlockStack"):
        gg.guided_denoise(NoReadout(), gg.S2Guidance(2.0), x, 1.0, 1)
