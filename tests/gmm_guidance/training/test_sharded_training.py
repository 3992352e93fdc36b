"""Training divided over devices is training on one, to the rounding of sums."""

import json
import textwrap

import pytest
from support.processes import run_python

_PROGRAM = """
import json, signal, os
import jax, jax.numpy as jnp, numpy as np
import gmm_guidance as gg
from full_models.models.dit.config import SIT, DiTConfig
from full_models.training import DiTTraining, train_dit
from gmm_guidance._runtime.interruption import Interrupted

def furthest(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(a, b, strict=True))

result = {}
config = DiTConfig(input_size=4, patch_size=2, in_channels=1, width=16, depth=2,
    num_heads=2, num_labels=2, learn_sigma=False, **SIT)
training = DiTTraining(snapshots=(20, 50), batch_size=16, warmup_steps=4)
rng = np.random.default_rng(0)
data = rng.standard_normal((64, 4, 4, 1)).astype(np.float32), np.arange(64) % 2
key = jax.random.key(3)
alone = train_dit(key, *data, config, training)
mesh = gg.MeshConfig(2, 2).build()
fsdp = train_dit(key, *data, config, training, mesh=mesh)
result["dit"] = furthest(alone, fsdp)
result["divided"] = not fsdp[50].blocks.mlp.fc1.kernel[...].is_fully_replicated

def stop(progress):
    if progress.step == 45:
        os.kill(os.getpid(), signal.SIGTERM)

try:
    train_dit(key, *data, config, training, mesh=mesh, progress=stop, checkpoint=CHECK)
    result["stopped"] = False
except Interrupted:
    result["stopped"] = True
again = train_dit(key, *data, config, training, mesh=mesh, checkpoint=CHECK)
result["resumed"] = furthest(again, fsdp)

mixture = gg.presets.two_modes()
small = gg.TrainingConfig(snapshots=(30,), width=8, num_blocks=3, batch_size=64)
for seeds in (4, 3):
    keys = jax.random.split(jax.random.key(5), seeds)
    runs = [gg.train_denoisers(keys, mixture, small, mesh=m)
        for m in (None, gg.MeshConfig().build())]
    result[f"toy {seeds}"] = furthest(runs[0].networks, runs[1].networks)
for name, call in {
    "refused": lambda mesh: train_dit(key, *data, config,
        DiTTraining(snapshots=(1,), batch_size=6), mesh=mesh),
    "refused toy": lambda mesh: gg.train_denoisers(keys, mixture,
        gg.TrainingConfig(snapshots=(3,), batch_size=6), mesh=mesh),
}.items():
    try:
        call(gg.MeshConfig().build())
    except ValueError as error:
        result[name] = str(error)
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    code = textwrap.dedent(_PROGRAM).replace("CHECK", repr(str(folder)))
    return json.loads(run_python(code, devices=4, as_users=True).split("RESULT")[1])


@pytest.mark.ci
def test_a_transformer_trained_on_four_devices_is_that_of_one(four):
    # Fifty steps of a rate of 2e-3; another order of sums moves Adam a little.
    assert four["dit"] < 1e-3
    assert four["divided"]


@pytest.mark.ci
def test_divided_training_goes_on_bit_for_bit(four):
    assert four["stopped"] and four["resumed"] == 0.0


@pytest.mark.ci
@pytest.mark.parametrize("seeds", [4, 3])
def test_toys_divided_by_seed_or_batch_are_the_same(four, seeds):
    assert four[f"toy {seeds}"] < 1e-3


@pytest.mark.ci
def test_batches_that_the_mesh_does_not_divide_are_refused(four):
    assert "multiple of the 4 parts" in four["refused"]
    assert "3 seeds and a batch_size of 6" in four["refused toy"]
