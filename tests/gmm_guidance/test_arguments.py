"""Every public entry refuses the same bad arguments, before anything is compiled.

Entries are found by inspection: a public function is checked by having an argument of a
name below, if there are good values for all that it requires.
"""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmm_guidance as gg

MIXTURE = gg.presets.two_modes()
DENOISER = gg.ExactDenoiser(MIXTURE)
KEY = jax.random.key(0)
NAN = np.array([[0.0], [np.nan], [1.0]] * 20)


class Levels:
    """A schedule of one's own."""

    def __init__(self, *levels):
        self.levels = np.array(levels)
        self.num_steps = len(levels) - 1

    def sigmas(self):
        return self.levels


ANY = (TypeError, ValueError)
#: Bad values of an argument by its name, and what the message says.
BAD = {
    "key": [(0, "jax.random.key"), (np.zeros(2), "random key"), ("a", "random key")],
    "denoiser": [
        (MIXTURE, "ExactDenoiser"),
        (2.0, "callable"),
        (gg.ExactDenoiser, "the class ExactDenoiser"),
    ],
    "x": [(np.zeros((3, 2)), "x must have shape"), ("a", "x must be"), (1j, "x must")],
    "sigma": [
        (-1.0, "sigma must be .*> ?=? ?0"),
        (np.nan, "sigma must be finite"),
        (np.inf, "sigma must be finite"),
        (np.ones(7), "sigma must"),
    ],
    "label": [
        (7, "label must be .*0..1"),
        (-1, "label must be .*0..1"),
        (1.7, "label must be"),
        (True, "label must be"),
        (np.zeros((3, 3), int), "label must be"),
    ],
    "guidance": [
        (2.0, r"CFG\(2.0\)"),
        (None, r"Unguided\(\)"),
        (gg.CFG, r"CFG\(...\)"),
        (gg.CFG(jnp.ones(3)), "scale of CFG must be one number"),
        (gg.APG(2.0, eta=jnp.ones(3)), "eta of APG must be one number"),
    ],
    "schedule": [
        (50, r"Karras\(50\)"),
        (np.array([80.0, 1.0, 0.0]), "CustomSchedule"),
        (gg.Karras, r"Karras\(...\)"),
        (Levels(80.0, 1.0, 0.5), "end in 0"),
        (Levels(80.0, 1.00000001, 1.0, 0.0), "fall strictly"),
        (Levels(80.0, np.nan, 0.0), "finite"),
        (Levels(1.0, 80.0, 0.0), "fall strictly"),
    ],
    "solver": [
        (gg.Heun, r"Write Heun\(\)"),
        (None, "solver must be"),
        ("heunn", "Did you mean 'heun'"),
    ],
    "mixture": [(DENOISER, "GaussianMixture"), (2.0, "GaussianMixture")],
    "num_samples": [(0, "at least"), (2.5, "whole number"), ("2", "whole number")],
    "batch_size": [(0, "at least 1"), (2.5, "whole number")],
    "num_points": [(0, "at least"), (2.5, "whole number")],
    "first_index": [(-1, "at least 0"), (1.5, "whole number")],
    "sample_shape": [((0,), "at least 1"), ((1.5,), "whole number")],
    "mesh": [
        (2, "MeshConfig"),
        (jax.make_mesh((1,), ("rows",)), "among data, fsdp, tensor"),
    ],
    "initial": [("a", "initial must be"), (np.zeros((3, 2)), "initial must")],
    "data": [
        (2.0, "data must be"),
        ((NAN, np.zeros(60, int)), "samples must be finite.*first.* index 1"),
        ((np.ones((60, 1)), np.full(60, -1)), "labels must be"),
        ((np.arange(60.0)[:, None], np.zeros(60)), "labels must be"),
        ((np.arange(60.0)[:, None], np.zeros(3, int)), "labels must"),
    ],
}
BAD["keys"] = []  # an array of keys, of any number
BAD["model"] = BAD["denoiser"]
#: Good values, the same for all entries.
GOOD = {
    "key": KEY,
    "denoiser": DENOISER,
    "model": DENOISER,
    "x": np.zeros((3, 1)),
    "sigma": 1.0,
    "label": 1,
    "labels": 1,
    "guidance": gg.CFG(2.0),
    "schedule": gg.Karras(4),
    "solver": "euler",
    "mixture": MIXTURE,
    "num_samples": 60,
    "samples": np.zeros((3, 1)),
    "scale": 2.0,
    "data": MIXTURE,
    "grid": np.zeros(3),
    "keys": jax.random.split(KEY, 1),
}
#: Good values of one entry.
GOOD_OF = {
    "expected_cost": {"model": 4},
    "weak_pass_effect": {"guidance": gg.AutoGuidance(DENOISER, 2.0)},
}

#: Where an entry accepts what others refuse.
ACCEPTED = {
    ("repaired_sample", "denoiser"): {0},  # a mixture
    ("expected_cost", "model"): {0, 1, 2},  # a number of blocks too
}

MODULES = {"": gg, "exact.": gg.exact}
METHODS = (
    "log_prob",
    "score",
    "denoise",
    "posterior_covariance",
    "sample",
    "condition",
)
# They take no denoiser: numbers, weights of a file, or a stack with its own checks.
SKIPPED = {"exact.scaled_output_change", "exact.quantile_map", "default_schedule"}


def entries():
    for prefix, module in MODULES.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and prefix + name not in SKIPPED:
                parameters = inspect.signature(value).parameters.values()
                if all(p.name in GOOD for p in parameters if p.default is p.empty):
                    yield prefix + name, value
    for name in METHODS:
        yield f"GaussianMixture.{name}", getattr(MIXTURE, name)


ENTRIES = dict(entries())
CASES = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, entry in ENTRIES.items()
    for argument in inspect.signature(entry).parameters
    if argument in BAD
]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_bad_arguments_are_refused(name, argument):
    entry = ENTRIES[name]
    accepted = ACCEPTED.get((name.split(".")[-1], argument), ())
    good = GOOD | GOOD_OF.get(name, {})
    required = {
        n: good[n]
        for n, p in inspect.signature(entry).parameters.items()
        if n in good and (p.default is p.empty or n in ("label", "sigma"))
    }
    if argument == "data":
        required.pop("label", None)  # of a mixture
    for i, (value, message) in enumerate(BAD[argument]):
        if i in accepted:
            continue
        with pytest.raises(ANY, match=message):
            entry(**required | {argument: value})
            pytest.fail(f"{name} accepts {argument}={value!r}")


def test_refusals_compile_nothing():
    compiled = []

    def count(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for _ in range(2):  # constants of the first round are kept
            compiled.clear()
            for argument, values in BAD.items():
                for value, _ in values:
                    good = dict(denoiser=DENOISER, num_samples=2, key=KEY)
                    if argument in inspect.signature(gg.guided_sample).parameters:
                        with pytest.raises(ANY):
                            gg.guided_sample(**good | {argument: value})
        assert not compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_integers_and_half_types_keep_the_noise_level():
    rule = gg.CFG(2.0)
    expected = gg.guided_denoise(DENOISER, rule, np.arange(-2.0, 3.0)[:, None], 0.5, 1)
    points = np.arange(-2, 3)[:, None]
    for dtype in (np.int32, np.int64, np.uint8, np.float16, jnp.bfloat16):
        x = np.abs(points).astype(dtype)
        values = gg.guided_denoise(DENOISER, rule, x, 0.5, 1)
        np.testing.assert_array_equal(values[2:], expected[2:])
        part = gg.decompose(DENOISER, rule, MIXTURE, x, 0.5, 1)
        assert float(jnp.abs(part.learning).max()) == 0.0
    x = np.array([[60.0], [100.0]])
    for method in (MIXTURE.denoise, MIXTURE.score, MIXTURE.log_prob):
        np.testing.assert_array_equal(
            method(x.astype(np.float16), 300.0), method(x.astype(np.float32), 300.0)
        )


def squeezed(x, sigma, label):
    return x[:, 0]


def nothing(x, sigma, label):
    return None


def pair(x, sigma, label):
    return x, x


def integers(x, sigma, label):
    return x.astype(jnp.int32)


def broadcast(x, sigma, label):
    return x[:1]


@pytest.mark.parametrize("wrong", [squeezed, nothing, pair, integers, broadcast])
def test_outputs_of_another_shape_are_refused_while_tracing(wrong):
    x = np.ones((2, 2))
    for run in (
        lambda: gg.guided_sample(KEY, wrong, num_samples=2, sample_shape=(2,)),
        lambda: gg.guided_denoise(wrong, gg.Unguided(), x, 1.0),
        lambda: gg.calibrate(wrong, (np.ones((240, 2)), None), KEY, num_samples=240),
    ):
        with pytest.raises(ANY, match=f"a denoiser must return .*{wrong.__name__}"):
            run()


def test_solvers_that_add_noise_make_no_map():
    for name, call in itertools.product(
        ("edm_stochastic", "ancestral"), (gg.quantile_map, gg.exact.line_distribution)
    ):
        with pytest.raises(ValueError, match="adds noise"):
            call(DENOISER, 1, solver=name, schedule=gg.Karras(4))
    plane = gg.ExactDenoiser(gg.presets.four_corners())
    with pytest.raises(ValueError, match=r"on a line need samples of shape \(1,\)"):
        gg.quantile_map(plane, 1)


def test_a_mesh_without_all_axes_is_completed():
    mesh = jax.make_mesh((1,), ("data",))
    samples = gg.guided_sample(
        KEY, DENOISER, 1, num_samples=4, mesh=mesh, schedule=gg.Karras(2)
    )
    alone = gg.guided_sample(KEY, DENOISER, 1, num_samples=4, schedule=gg.Karras(2))
    np.testing.assert_array_equal(samples, alone)


def test_scales_are_no_text():
    for scale in ([1.0, 2.0], "2"):
        with pytest.raises(TypeError, match="scale must be a number"):
            gg.CFG(scale)


def test_snapshots_become_a_tuple_of_integers():
    for snapshots in ([20], tuple(np.array([20])), np.array([20]), 20, np.int64(20)):
        config = gg.TrainingConfig(snapshots=snapshots, width=np.int64(8))
        assert config == gg.TrainingConfig(snapshots=(20,), width=8)
        assert all(type(step) is int for step in (*config.snapshots, config.width))
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        gg.TrainingConfig(batch_size=16.5)
