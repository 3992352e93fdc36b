"""Checkpoints of training: exact, whole or not there, and never damaged ones."""

import gc
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.processes import run_python

from gmm_guidance._runtime.checkpoints import Checkpoints, discard, stored_steps

DESCRIPTION = {"kind": "test", "sizes": (1, 2)}


def tree_of(step):
    """Arrays of many kinds, other ones at each step."""
    return {
        "floats": jnp.arange(6.0).reshape(2, 3) + step,
        "half": jnp.full((3,), step, jnp.bfloat16),
        "bits": jnp.array([True, step % 2 == 0]),
        "count": jnp.int32(step),
        "large": jax.random.normal(jax.random.key(step), (40, 40)),
    }


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the last two of three checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, tree_of(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of its own."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restore(folder, description=DESCRIPTION, like=tree_of):
    with Checkpoints(folder, description) as checkpoints:
        return checkpoints.restore(like)


# --- what is kept


def test_modules_and_states_of_optimisers_come_back(tmp_path):
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    state = optax.adam(0.1).init(module)
    # More than ten: their names are not in the order of the alphabet.
    tree = (module, state, [jnp.int32(i) for i in range(12)])
    with Checkpoints(tmp_path / "run", DESCRIPTION) as checkpoints:
        assert checkpoints.restore(lambda step: tree) is None
        checkpoints.save(5, tree)
        checkpoints.save(5, tree)  # nothing happens
    like = jax.eval_shape(lambda: tree)
    with Checkpoints(tmp_path / "run", DESCRIPTION) as checkpoints:
        step, found = checkpoints.restore(lambda step: like)
        assert step == 5
        assert_same(found, jax.tree.map(jnp.asarray, tree))
        assert isinstance(found[0], nnx.Linear)
        checkpoints.remove()
    assert not any(tmp_path.iterdir())


def test_the_last_are_kept(folder):
    assert stored_steps(folder) == [20, 30]
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        step, found = checkpoints.restore(tree_of)
        assert step == 30
        assert_same(found, tree_of(30))
        checkpoints.save(40, found)
    assert stored_steps(folder) == [30, 40]
    discard(folder, [40])
    assert restore(folder)[0] == 30


def test_nothing_is_kept_without_a_folder(tmp_path):
    with Checkpoints(None, DESCRIPTION, seconds_between=-1.0) as checkpoints:
        checkpoints.save_if_due(1, tree_of(1))
        checkpoints.save(1, tree_of(1))
        checkpoints.wait()
        assert checkpoints.restore(tree_of) is None
        checkpoints.remove()
    assert stored_steps(tmp_path / "nowhere") == []


def test_arrays_may_be_overwritten_once_saved(tmp_path):
    """What is written is what was there when ``save`` returned."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    donated = jnp.zeros(1_000_000)
    with Checkpoints(tmp_path / "run", DESCRIPTION) as checkpoints:
        checkpoints.save(1, [donated])
        for _ in range(10):
            donated = add(donated)
        donated.block_until_ready()
    like = [jax.ShapeDtypeStruct(donated.shape, donated.dtype)]
    _, found = restore(tmp_path / "run", like=lambda step: like)
    assert not np.any(found[0])


def test_arrays_go_where_they_are_to_be(folder):
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec()
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree_of(0)
    )
    _, found = restore(folder, like=lambda step: shapes)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(found))


def test_saving_now_and_then(tmp_path, monkeypatch):
    """A clock that is set back disturbs neither the times nor the order."""
    clock = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    with Checkpoints(tmp_path, DESCRIPTION, seconds_between=3600) as checkpoints:
        checkpoints.save_if_due(1, tree_of(1))
        assert stored_steps(tmp_path) == []
    with Checkpoints(tmp_path, DESCRIPTION, seconds_between=-1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_if_due(step, tree_of(step))
    assert stored_steps(tmp_path) == [2, 3]
    step, found = restore(tmp_path)
    assert step == 3
    assert_same(found, tree_of(3))


# --- what is refused


def test_a_folder_of_something_else(folder):
    with pytest.raises(ValueError, match=r"another run: sizes is \[1, 2\].*Delete it"):
        restore(folder, DESCRIPTION | {"sizes": [1, 3]})
    assert stored_steps(folder) == [20, 30]
    (folder / "results.txt").touch()
    with pytest.raises(ValueError, match="no other content, but has 'results.txt'"):
        Checkpoints(folder, DESCRIPTION)
    with pytest.raises(ValueError, match="must be a folder, but is a file"):
        Checkpoints(folder / "results.txt", DESCRIPTION)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/run must be writable.*Free some space"):
        with Checkpoints(tmp_path / "file" / "run", DESCRIPTION):
            raise AssertionError("trained before looking at the folder")


def test_a_disk_that_fills_while_writing(folder):
    """The error comes out later; the checkpoints before are whole."""
    noise = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="run must be writable.*File too large"):
        with Checkpoints(folder, DESCRIPTION) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            try:
                checkpoints.save(40, {"noise": jnp.asarray(noise)})
                checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stored_steps(folder) == [20, 30]
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        assert checkpoints.restore(tree_of)[0] == 30
        checkpoints.save(40, tree_of(40))
    assert sorted(os.listdir(folder)) == ["30", "40"]


# --- what is damaged


def flip(position):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[int(position * (len(content) - 1))] ^= 16
        file.write_bytes(content)

    return damage


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


DAMAGE = {f"bit at {p}": flip(p) for p in (0, 0.3, 0.7, 1)}
DAMAGE |= {"truncated": truncate, "missing": Path.unlink}


@pytest.fixture
def abandoned_reads():
    """Where one read of orbax fails, the others find its event loop closed."""
    yield
    time.sleep(0.1)
    gc.collect()


@pytest.mark.filterwarnings("ignore:checkpoint of step")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    # The everyday tests damage one place, CI all of them.
    [
        pytest.param(
            damage, id=name, marks=[] if name == "bit at 0.3" else [pytest.mark.ci]
        )
        for name, damage in DAMAGE.items()
    ],
)
def test_damaged_files_never_give_other_values(
    saved, tmp_path, damage, abandoned_reads
):
    """Each file of the newest checkpoint in turn."""
    steps = []
    for file in saved.glob("30/**/*"):
        if file.is_file():
            folder = shutil.copytree(saved, tmp_path / "run")
            damage(folder / file.relative_to(saved))
            step, found = restore(folder)
            assert_same(found, tree_of(step))
            assert stored_steps(folder) == ([20] if step == 20 else [20, 30])
            steps.append(step)
            shutil.rmtree(folder)
    assert set(steps) == {20, 30}  # some files are not needed


def record_of(folder, step):
    return folder / str(step) / "record" / "metadata"


def test_a_damaged_checkpoint_is_replaced(folder):
    truncate(record_of(folder, 30))
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        message = "step 30 in .*run is damaged .*going back to step 20"
        with pytest.warns(UserWarning, match=message):
            step, found = checkpoints.restore(tree_of)
        assert step == 20
        assert_same(found, tree_of(20))
        checkpoints.save(30, tree_of(30))
    assert_same(restore(folder)[1], tree_of(30))


def test_a_record_that_was_edited(folder):
    """A description that would fit does not pass with another checksum."""
    for change in ({"step": 31}, {"description": {"kind": "other"}}, {"arrays": {}}):
        for step in (20, 30):
            path = record_of(folder, step)
            content = json.loads(path.read_text())
            content["record"] |= change
            path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="all checkpoints in .*Delete it to train"):
            restore(folder, change.get("description", DESCRIPTION))
    assert stored_steps(folder) == [20, 30]


def test_arrays_of_another_kind(folder):
    for name, array in (("half", jnp.zeros(4)), ("more", jnp.zeros(()))):
        with pytest.raises(ValueError, match=f"are damaged .*{name} is"):
            restore(folder, like=lambda s, n=name, a=array: tree_of(s) | {n: a})


def test_what_a_killed_save_left_is_no_checkpoint(folder):
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        assert checkpoints.restore(tree_of)[0] == 30
        checkpoints.save(40, tree_of(40))
    assert sorted(os.listdir(folder)) == ["30", "40"]
    shutil.copytree(folder / "30", folder / "50.orbax-checkpoint-tmp")
    with Checkpoints(folder, DESCRIPTION) as checkpoints:
        checkpoints.remove()
    assert not folder.exists()


_KILLED = """
import os, sys
import jax.numpy as jnp
from gmm_guidance._runtime.checkpoints import Checkpoints

checkpoints = Checkpoints(sys.argv[1], {})
for step in range(1, 4):
    checkpoints.save(step, {"x": jnp.full((1000, 1000), step, jnp.float32)})
os._exit(0)
"""


@pytest.mark.ci
def test_a_process_killed_while_it_writes(tmp_path):
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=True)
    like = {"x": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    step, found = restore(tmp_path, {}, lambda step: like)
    assert step in (2, 3) and np.unique(found["x"]) == step


# --- several devices, several runs


_SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from gmm_guidance._runtime.checkpoints import Checkpoints

assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("data",))
values = jnp.arange(4 * 6, dtype=jnp.float32).reshape(4, 6)
places = [P("data"), P()]
arrays = [jax.device_put(values, NamedSharding(mesh, place)) for place in places]
with Checkpoints(sys.argv[1], {}) as checkpoints:
    checkpoints.save(1, {"x": arrays[0]})
    checkpoints.wait()
    for like in (arrays[0], arrays[1], values):
        _, found = checkpoints.restore(lambda step: {"x": like})
        assert found["x"].sharding == like.sharding
        np.testing.assert_array_equal(found["x"], values)
"""


@pytest.mark.ci
def test_arrays_divided_over_devices(tmp_path):
    code = _SHARDED.replace("sys.argv[1]", repr(str(tmp_path / "run")))
    run_python(code, devices=4)


def test_a_folder_that_another_run_uses_is_refused(tmp_path):
    folder = tmp_path / "run"
    with Checkpoints(folder, {}):
        with pytest.raises(BlockingIOError, match="in use by another process"):
            with Checkpoints(folder, {}):
                pass
    with Checkpoints(folder, {}):
        pass
    assert list(tmp_path.iterdir()) == []
