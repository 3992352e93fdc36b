"""The store of results: nothing is taken for something else, nothing is lost."""

import dataclasses
import json
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.processes import run_python

import gmm_guidance as gg
from gmm_guidance._runtime.progress import Reporter
from toy_experiments.common.identity import code_version, digest_of, identity, sources
from toy_experiments.common.networks import train_networks, trained
from toy_experiments.common.store import Store

CALLS: list[float] = []


def double(context, number):
    CALLS.append(number)
    return {"values": np.array([2.0 * number])}


@pytest.fixture
def store(tmp_path):
    CALLS.clear()
    return Store(tmp_path, Reporter())


@dataclasses.dataclass(frozen=True)
class Setting:
    scale: float
    name: str = "a"


def network(seed=0):
    config = gg.NetworkConfig(1, 2, 8, 3, data_scale=1.0)
    return gg.BlockMLP(config, rngs=nnx.Rngs(jax.random.key(seed))).as_stack()


DIFFERENT = [
    None,
    True,
    1,
    1.0,
    "1",
    np.float32(1.0),
    jnp.ones(1),
    jnp.ones(2),
    jnp.zeros(2),
    jax.random.key(0),
    jax.random.key(1),
    Setting(1.0),
    Setting(1.0, "b"),
    gg.CFG(2.0),
    gg.CFG(3.0),
    gg.S2Guidance(2.0),
    gg.S2Guidance(2.0, num_masks=2),
    gg.S2Guidance(2.0, window=(0.0, 0.5)),
    gg.AutoGuidance(network(), 2.0),
    gg.AutoGuidance(network(1), 2.0),
    gg.Karras(8, 0.01, 10.0),
    gg.Karras(9, 0.01, 10.0),
    gg.presets.two_modes(),
    gg.presets.two_modes(0.5),
    gg.ExactDenoiser(gg.presets.two_modes()),
    network(),
    network(1),
    (network(), network()),
    {"a": 1},
    {"a": 2},
    double,
    Setting,
]


def test_different_arguments_have_different_identities():
    found = [json.dumps(identity(value)) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert identity(network()) == identity(network())
    assert identity((1, [2])) == identity([1, (2,)])


@pytest.mark.parametrize("value", [object(), lambda x: x, {1, 2}, [b"bytes"]])
def test_what_cannot_be_identified_is_refused(value):
    with pytest.raises(TypeError, match="arguments of a stored computation"):
        identity([value])


_IN_ANOTHER_PROCESS = """
import jax
from flax import nnx
import gmm_guidance as gg
from toy_experiments.common.identity import digest_of
from toy_experiments.common.sweep import rule_metrics
config = gg.NetworkConfig(1, 2, 8, 3, data_scale=1.0)
network = gg.BlockMLP(config, rngs=nnx.Rngs(jax.random.key(0))).as_stack()
print(digest_of(rule_metrics, [network, gg.AutoGuidance(network, 2.0)]))
"""


@pytest.mark.ci
def test_identities_hold_in_another_process():
    from toy_experiments.common.sweep import rule_metrics

    here = digest_of(rule_metrics, [network(), gg.AutoGuidance(network(), 2.0)])
    assert run_python(_IN_ANOTHER_PROCESS).split()[-1] == here


def test_code_is_what_a_module_imports():
    found = sources("toy_experiments.common.sweep")
    assert "gmm_guidance.mixture.gaussian_mixture" in found
    assert "toy_experiments.common.mixtures" in found
    assert not any("phase_diagram" in name for name in found)
    assert any("sweep" in name for name in sources("toy_experiments.phase_diagram"))


def test_edited_code_is_other_code(tmp_path, monkeypatch):
    path = tmp_path / "a_module.py"
    path.write_text("import toy_experiments.common.records\nX = 1\n")
    module = type(sys)("a_module")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "a_module", module)
    before = code_version("a_module")
    path.write_text("import toy_experiments.common.records\nX = 2\n")
    code_version.cache_clear()
    assert code_version("a_module") != before


def test_a_cell_is_computed_once_for_equal_arguments(store, tmp_path):
    for number in (1, 2, 1):
        assert store.cell(double, number)["values"] == 2.0 * number
    assert CALLS == [1, 2]
    Store(tmp_path, Reporter()).cell(double, 2)
    assert CALLS == [1, 2]
    again = Store(tmp_path, Reporter(), fresh=True)
    again.cell(double, 2)
    again.cell(double, 2)
    assert CALLS == [1, 2, 2]
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half", None])
def test_a_damaged_cell_is_reported_and_computed_again(
    content, store, tmp_path, capsys
):
    wanted = store.cell(double, 3)
    (path,) = (tmp_path / "cells").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    assert store.cell(double, 3) == wanted and CALLS == [3, 3]
    said = " ".join(capsys.readouterr().out.split())
    assert path.name in said.replace(" ", "") and "computing it again" in said
    store.cell(double, 3)
    assert CALLS == [3, 3]


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["a file", "a folder of garbage"])
def test_a_damaged_checkpoint_does_not_end_every_run(kind, tmp_path):
    mixture = gg.presets.two_modes()
    config = gg.TrainingConfig(snapshots=(4,), width=8, num_blocks=3, batch_size=32)
    digest = digest_of(train_networks, (mixture, config, 2))
    store = Store(tmp_path, Reporter())
    checkpoint = store.cells / f"train_networks-{digest}.checkpoint"
    if kind == "a file":
        checkpoint.write_text("damaged")
    else:
        (checkpoint / "2").mkdir(parents=True)
        (checkpoint / "2" / "junk").write_text("damaged")
    run = trained(store, mixture, config, 2)
    assert run.num_seeds == 2 and not checkpoint.exists()
    found = [path.name for path in store.cells.iterdir()]
    assert found == [f"train_networks-{digest}.safetensors"]


def test_map_runs_one_item_of_each_program_first(store):
    seen, gate = [], threading.Lock()

    def one(program, number):
        with gate:
            seen.append((program, number))
        return 10 * number

    items = [("a", 1), ("a", 2), ("b", 3), ("b", 4), ("a", 5)]
    found = store.map("mapping", one, items, program=lambda item: item[0])
    assert list(found.items()) == [(item, 10 * item[1]) for item in items]
    assert set(seen[:2]) == {("a", 1), ("b", 3)}


def test_an_error_ends_a_map(store):
    def one(number):
        if number == 1:
            raise ValueError("no")
        return number

    with pytest.raises(ValueError, match="no"):
        store.map("mapping", one, [(n,) for n in range(4)])


def test_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="must be writable"):
        Store(tmp_path / "file" / "results", Reporter())
