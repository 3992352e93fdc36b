"""What ``guided_sample`` records and shows besides its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.toy_stack import ToyStack
from oracles.two_gaussians import TwoGaussians

import gmm_guidance as gg
from gmm_guidance._runtime.progress import listening
from gmm_guidance.sampling import sample

STEPS = gg.Karras(4)
STACK = ToyStack.random()
S2 = gg.S2Guidance(2.0, 0.5, window=(0.25, 1.0))


def run(denoiser, guidance, n=6, **options):
    options = {"schedule": STEPS, "sample_shape": (2,), "label": 1, **options}
    key = jax.random.key(0)
    return gg.guided_sample(
        key, denoiser, num_samples=n, guidance=guidance, trajectory=True, **options
    )


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_record_is_that_of_the_first_evaluation_of_each_step(solver):
    exact = TwoGaussians(1.5, 0.5, 3.0)
    names = ("denoised", "update_norm")
    found = run(exact, gg.CFG(3.0), record=names, solver=solver)
    assert isinstance(found, gg.Sampled) and sorted(found.recorded) == sorted(names)
    samples, path = run(exact, gg.CFG(3.0), solver=solver)
    np.testing.assert_allclose(found.samples, samples, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.trajectory, path, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.sigmas, STEPS.sigmas().astype(np.float32))
    for i, sigma in enumerate(STEPS.sigmas()[:-1]):
        cond, uncond = (np.asarray(exact(path[i], sigma, k)) for k in (1, None))
        update = 2.0 * (cond - uncond)
        value, norm = (found.recorded[name][i] for name in names)
        np.testing.assert_allclose(value, cond + update, rtol=2e-4, atol=2e-4)
        wanted = np.sqrt((update**2).mean(1))
        np.testing.assert_allclose(norm, wanted, rtol=2e-4, atol=2e-4)


def test_masks_are_the_blocks_that_are_dropped():
    found = run(STACK, S2, record=("masks", "denoised"), solver="euler")
    masks = np.asarray(found.recorded["masks"])
    assert masks.shape == (4, 1, 4)
    np.testing.assert_array_equal(masks.sum((1, 2)), [0, 1, 1, 1])  # the window
    for i in range(1, 4):
        x, sigma = found.trajectory[i], jnp.float32(STEPS.sigmas()[i])
        label = jnp.ones(6, jnp.int32)
        drop = jnp.asarray(np.flatnonzero(masks[i, 0]))
        uncond, cond, weak = gg.evaluate_passes(
            STACK, x, sigma, (gg.Pass(None), gg.Pass(label), gg.Pass(label, drop=drop))
        )
        wanted = uncond + 2.0 * (cond - uncond) + 0.5 * (cond - weak)
        value = found.recorded["denoised"][i]
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


ALL = {"record": ("denoised", "masks", "update_norm"), "solver": "euler"}


def assert_close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_records_in_batches_are_the_same():
    rule = gg.S2Guidance(2.0, 0.5, window=None, per_sample=True)
    whole = run(STACK, rule, **ALL)
    assert whole.recorded["masks"].shape == (4, 6, 1, 4)
    assert_close(run(STACK, rule, batch_size=3, **ALL), whole)


@pytest.mark.ci
def test_records_under_jit_and_a_mesh_are_the_same():
    whole = run(STACK, S2, **ALL)
    assert_close(run(STACK, S2, mesh=gg.MeshConfig(1).build(), **ALL), whole)
    assert_close(jax.jit(lambda: run(STACK, S2, **ALL))(), whole)


def test_what_cannot_be_recorded_is_refused():
    exact = TwoGaussians(1.5, 0.5, 3.0)
    with pytest.raises(ValueError, match="needs a rule with weak passes"):
        run(exact, gg.CFG(2.0), record=("masks",))
    with pytest.raises(ValueError, match="names of denoised, update_norm, masks"):
        run(exact, gg.CFG(2.0), record=("states",))
    with pytest.raises(ValueError, match="conditional pass"):
        run(exact, gg.CFG(0.0), record=("update_norm",))


def test_progress_counts_the_steps_of_all_batches(capsys, monkeypatch):
    seen = []

    class Counting(sample.Reporter):
        def task(self, name, total):
            task = super().task(name, total)
            seen.append((name, total))
            task.move_to = lambda done, detail=None: seen.append(done)
            return task

    monkeypatch.setattr(sample, "Reporter", Counting)
    exact = TwoGaussians(1.5, 0.5, 3.0)
    shown, _ = run(exact, gg.CFG(2.0), progress=True, batch_size=3)
    assert seen[0] == ("sampling", 8) and seen[-1] == 8
    assert set(seen[1:]) == set(range(9))
    silent, _ = run(exact, gg.CFG(2.0), batch_size=3)
    np.testing.assert_allclose(shown, silent, rtol=1e-5, atol=1e-5)
    with listening(lambda step: seen.append("leaked")):
        run(exact, gg.CFG(2.0), batch_size=3)
    assert "leaked" not in seen
    with pytest.raises(ValueError, match="inside of jax.jit"):
        jax.jit(
            lambda key: gg.guided_sample(
                key, exact, 1, num_samples=2, sample_shape=(2,), progress=True
            )
        )(jax.random.key(0))


def test_the_score_of_an_exact_denoiser_is_the_gradient_of_the_log_density():
    mixture = gg.presets.four_corners()
    x = jax.random.normal(jax.random.key(0), (5, 2)) * 3
    density = lambda point: mixture.log_prob(point[None], 1.5, 2)[0]  # noqa: E731
    score = gg.guided_score(gg.ExactDenoiser(mixture), gg.Unguided(), x, 1.5, 2)
    wanted = jax.vmap(jax.grad(density))(x)
    np.testing.assert_allclose(score, wanted, rtol=1e-3, atol=1e-4)
