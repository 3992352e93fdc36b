"""Files of arrays: exact round trips, and refusals that say what is wrong."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from oracles.block_networks import abstract, random_network

from gmm_guidance import TrainedDenoiser, TrainingConfig, TrainingRun
from gmm_guidance._runtime.tensor_files import (
    differences,
    load_description,
    load_tree,
    save_tree,
)

TREE = {
    "weights": (jnp.array([[1.0, -0.0], [jnp.inf, 1e-45]]), np.arange(3)[::-1]),
    "count": jnp.asarray(7, jnp.int32),
    "flags": np.array([True, False]),
    "half": jnp.array([0.1], jnp.bfloat16),
    "empty": jnp.zeros((0, 2)),
}
DESCRIPTION = {"kind": "test", "step": 3, "rate": 0.1, "nested": {"names": ["a"]}}
CONFIG = TrainingConfig(snapshots=(2, 5), width=8, num_blocks=5)
NETWORK = random_network()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


@pytest.fixture
def saved(tmp_path):
    tree = jax.tree.map(jnp.asarray, TREE)
    return save_tree(tmp_path / "new" / "folder" / "file", tree, DESCRIPTION), tree


# --- any tree


def test_trees_and_descriptions_come_back_exactly(saved):
    path, tree = saved
    assert_same(load_tree(path, tree), tree)
    shapes = jax.eval_shape(lambda: tree)
    assert_same(load_tree(path, shapes), tree)
    assert load_description(path) == DESCRIPTION


@pytest.mark.parametrize("place", [rb"\"step\": 3", None], ids=["text", "numbers"])
def test_flipped_bits_are_noticed(saved, place):
    path, tree = saved
    data = bytearray(path.read_bytes())
    data[-1 if place is None else data.index(place) + len(place) - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="another checksum"):
        load_tree(path, tree)


def test_equal_trees_are_equal_files(tmp_path):
    """safetensors orders its metadata by chance."""
    description = DESCRIPTION | {"text": "µ\x7f"}
    files = [save_tree(tmp_path / f"{i}", TREE, description) for i in range(12)]
    assert len({path.read_bytes() for path in files}) == 1
    assert load_description(files[0])["text"] == "µ\x7f"


def test_a_file_is_replaced_as_a_whole(saved):
    path, _ = saved
    save_tree(path, {"a": jnp.ones(2)}, {"kind": "other"})
    assert load_description(path) == {"kind": "other"}
    assert_same(load_tree(path, {"a": jnp.zeros(2)}), {"a": jnp.ones(2)})
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_all_as_it_was(saved, monkeypatch, error):
    path, tree = saved

    def fail(arrays, temporary, metadata):
        with open(temporary, "wb") as file:
            file.write(b"half a file")
        raise error

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    for target in (path, path.with_name("fresh")):
        with pytest.raises(type(error)):
            save_tree(target, {"a": jnp.ones(2)}, {})
    assert list(path.parent.iterdir()) == [path]
    assert_same(load_tree(path, tree), tree)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        load_description(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_tree(tmp_path, {})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    path, tree = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="file is truncated or no safetensors file"):
        load_tree(path, tree)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"description": "{"}])
def test_foreign_files_are_refused(tmp_path, metadata):
    path = tmp_path / "foreign"
    arrays = {"a": np.ones(2, np.float32)}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    with pytest.raises(
        ValueError, match="not written by gmm_guidance|damaged or of another"
    ):
        load_tree(path, {"a": jnp.ones(2)})
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_tree(path, {"a": jnp.ones(2)})


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": jnp.ones(2), "b": jnp.ones(1)}, "missing b"),
        ({}, "unexpected a"),
        ({"a": jnp.ones(3)}, r"a is float32 \(2,\), expected float32 \(3,\)"),
        ({"a": jnp.ones((2, 1))}, r"a is float32 \(2,\), expected float32 \(2, 1\)"),
        ({"a": jnp.ones(2, jnp.int32)}, r"a is float32 \(2,\), expected int32 \(2,\)"),
        (
            {c: jnp.ones(1) for c in "bcdefgh"},
            "missing b; missing c; missing d; missing e; missing f; and 3 more",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, like, message):
    path = save_tree(tmp_path / "file", {"a": jnp.ones(2)}, {})
    with pytest.raises(ValueError, match=f"file does not fit: .*{message}"):
        load_tree(path, like)


def test_differences_are_named_to_the_depth_where_they_are():
    expected = {"a": 1, "b": {"c": 2, "d": [3]}, "e": 5}
    found = {"a": 1, "b": {"c": 2, "d": [4]}, "f": 6}
    assert differences(expected, expected) == []
    assert differences(expected, found) == [
        "b.d is [4], expected [3]",
        "e is None, expected 5",
        "f is 6, expected None",
    ]


# --- denoisers and runs


@pytest.fixture
def denoiser():
    return TrainedDenoiser(NETWORK, CONFIG, 2)


@pytest.fixture
def run():
    seeds = [random_network(seed) for seed in (1, 2, 3)]
    both = jax.tree.map(lambda *a: jnp.stack(a), *seeds)
    other = jax.tree.map(lambda a: 2 * a, both)
    losses = (jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.25, 0.125]))
    return TrainingRun((both, other), CONFIG, 3, losses)


def test_a_denoiser_comes_back_exactly(denoiser, tmp_path):
    path = denoiser.save(tmp_path / "denoiser")
    for config in (None, CONFIG):
        loaded = TrainedDenoiser.load(path, config)
        assert_same(loaded.network, NETWORK)
        assert (loaded.config, loaded.step) == (CONFIG, 2)
        assert loaded.network.config == NETWORK.config
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(loaded(x, 1.0), denoiser(x, 1.0))


def test_a_run_comes_back_exactly(run, tmp_path):
    loaded = TrainingRun.load(run.save(tmp_path / "run"), CONFIG)
    assert_same((loaded.networks, loaded.losses), (run.networks, run.losses))
    assert (loaded.config, loaded.num_seeds) == (CONFIG, 3)
    picked = loaded.denoiser(1, 2)
    assert_same(picked.network, random_network(2))
    assert (picked.step, loaded.denoiser(2).step) == (2, 5)
    doubled = jax.tree.map(lambda a: 2 * a, random_network(3))
    assert_same(loaded.denoiser(2).network, doubled)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 1e-4}, "learning_rate is 0.003, expected 0.0001"),
        ({"snapshots": (2, 6)}, r"snapshots is \[2, 5\], expected \[2, 6\]"),
        ({"target": "exact"}, "target is 'samples', expected 'exact'"),
        ({"width": 9, "num_blocks": 4}, "num_blocks is 5, .* width is 8, expected 9"),
    ],
)
def test_another_configuration_is_refused(denoiser, run, tmp_path, options, message):
    config = dataclasses.replace(CONFIG, **options)
    with pytest.raises(ValueError, match=f"another configuration: .*{message}"):
        TrainedDenoiser.load(denoiser.save(tmp_path / "denoiser"), config)
    with pytest.raises(ValueError, match=f"another configuration: .*{message}"):
        TrainingRun.load(run.save(tmp_path / "run"), config)


def test_kinds_of_networks_come_back(tmp_path):
    kinds = {"prediction": "velocity", "block": "attention"}
    network = random_network(**kinds)
    config = dataclasses.replace(CONFIG, **kinds, block_dropout=0.1, num_points=7)
    path = TrainedDenoiser(network, config, 2).save(tmp_path / "denoiser")
    loaded = TrainedDenoiser.load(path, config)
    assert_same(loaded.network, network)
    assert (loaded.config, loaded.prediction) == (config, network.prediction)
    with pytest.raises(ValueError, match="prediction is 'velocity', expected 'edm'"):
        TrainedDenoiser.load(path, CONFIG)


@pytest.mark.parametrize("part", ["network", "training"])
def test_a_file_of_an_earlier_version_is_refused(denoiser, run, tmp_path, part):
    """Before networks had kinds, none of these fields was written."""
    for made in (denoiser, run):
        path = made.save(tmp_path / "file")
        description = load_description(path)
        del description[part]["block"], description[part]["prediction"]
        save_tree(path, {}, description)
        message = f"another version.* {part} .*in block, prediction. Train again"
        with pytest.raises(ValueError, match=message):
            type(made).load(path)


def test_a_file_of_another_kind_is_refused(denoiser, run, tmp_path):
    with pytest.raises(ValueError, match="TrainedDenoiser', expected .*TrainingRun'"):
        TrainingRun.load(denoiser.save(tmp_path / "denoiser"))
    with pytest.raises(ValueError, match="TrainingRun', expected .*TrainedDenoiser'"):
        TrainedDenoiser.load(run.save(tmp_path / "run"))


def test_weights_that_are_not_the_described_network_are_refused(denoiser, tmp_path):
    path = denoiser.save(tmp_path / "denoiser")
    wider = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        abstract(dataclasses.replace(NETWORK.config, width=9)).backbone,
    )
    save_tree(path, wider, load_description(path))
    with pytest.raises(ValueError, match="denoiser does not fit: .*expected"):
        TrainedDenoiser.load(path)


def test_a_file_holds_text_and_arrays_only(denoiser, tmp_path):
    """The header is JSON: whoever loads a file runs no code of it."""
    content = denoiser.save(tmp_path / "denoiser").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description = json.loads(header.pop("__metadata__")["description"])
    assert description["training"]["width"] == 8
    sizes = [entry["data_offsets"][1] for entry in header.values()]
    assert 8 + int.from_bytes(content[:8], "little") + max(sizes) == len(content)


def test_a_run_has_no_other_seeds_or_snapshots(run):
    for seed, step in ((3, 5), (-1, 5), (0, 4)):
        with pytest.raises(ValueError, match=r"seeds 0\.\.2 and snapshots .*\(2, 5\)"):
            run.denoiser(seed, step)


def test_files_have_the_usual_permissions(tmp_path):
    """Not the private ones of the temporary file that is renamed."""
    plain = tmp_path / "plain"
    plain.write_text("x")
    path = save_tree(tmp_path / "tree", {"a": np.zeros(1)}, {})
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    """The writer's own error, as it was seen on a full disk, as Python's."""

    def full(*arguments):
        raise safetensors.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left on device.*free some") as caught:
        save_tree(tmp_path / "a.safetensors", {"a": np.zeros(3)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
