"""A family that the package does not have: all that it takes is a ``Family``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from support.trees import assert_same_trees

from full_models.models import registry
from full_models.models.family import Family, Inferred, Layout
from full_models.weights import export
from full_models.weights.load import open_checkpoint
from full_models.weights.table import (
    Entry,
    Source,
    Table,
    copied,
    dump,
    linear,
    transposed,
)

WIDTH = 4


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Two kinds of block: ``double`` of the first and ``single`` of the second."""

    double: int = 2
    single: int = 3
    steps: int = 28
    compute_dtype: str = "float32"


class Pair(nnx.Module):
    def __init__(self, config):
        self.config = config
        self.double = nnx.Param(jnp.zeros((config.double, WIDTH, 3 * WIDTH)))
        self.single = nnx.Dict(
            kernel=nnx.Param(jnp.zeros((config.single, WIDTH, WIDTH))),
            bias=nnx.Param(jnp.zeros((config.single, WIDTH))),
        )
        self.scale = nnx.Param(jnp.zeros(WIDTH))
        self.crop = nnx.Param(jnp.zeros((2, WIDTH)))


def swapped(array):
    return np.concatenate(np.split(array, 2, axis=-1)[::-1], axis=-1)


def table(config, stored):
    parts = [
        [f"double_blocks.{i}.to_{part}" for part in "qkv"] for i in range(config.double)
    ]
    joined = transposed([[f"{n}.weight" for n in row] for row in parts], WIDTH, WIDTH)
    single = [f"single_blocks.{i}.linear" for i in range(config.single)]
    entries = {"double": joined, **linear("single", single, WIDTH, WIDTH)}
    entries["scale"] = Entry(((Source("norm.weight", (WIDTH,), swapped, swapped),),))
    size = stored["table"].shape if "table" in stored else (2, WIDTH)
    entries["crop"] = copied("table", size)
    if size != (2, WIDTH):  # the table of a larger grid, of which the middle is kept
        source = Source("table", size, lambda array: array[1:3], lambda array: array)
        entries["crop"] = Entry(((source,),))
    return Table(entries)


def infer(stored, config):
    count = {
        kind: len({n.split(".")[1] for n in stored if n.startswith(f"{kind}_blocks")})
        for kind in ("double", "single")
    }
    return Inferred(count)


FAMILY = Family(
    name="Pair",
    config=PairConfig,
    build=Pair,
    layouts={
        "original": Layout(
            r"^double_blocks\.",
            table,
            infer,
            ignored=("text_encoder.",),
        )
    },
    published={
        "Pair-dev": {"double": 2, "single": 3, "steps": 28},
        "Pair-fast": {"double": 2, "single": 3, "steps": 4},
    },
)
FAMILIES = (*registry.FAMILIES, FAMILY)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    empty = Pair(PairConfig())
    return jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), empty)


@pytest.fixture
def path(tmp_path, pair):
    tensors = dump(pair, table(pair.config, {}))
    path = tmp_path / "pair.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def opened(path, model="Pair-dev"):
    return open_checkpoint(path, model, families=FAMILIES)


def test_it_is_recognized_and_comes_back(path, pair):
    checkpoint = opened(path)
    assert checkpoint.family is FAMILY and checkpoint.layout == "original"
    assert_same_trees(checkpoint.load(), pair)
    tensors = safetensors.numpy.load_file(path)
    queries = tensors["double_blocks.1.to_k.weight"].T
    np.testing.assert_array_equal(pair.double[1, :, WIDTH : 2 * WIDTH], queries)


def test_bundled_files_with_a_prefix_and_a_larger_table(path, pair):
    tensors = safetensors.numpy.load_file(path)
    tensors["table"] = np.pad(tensors["table"], ((1, 3), (0, 0)), constant_values=9)
    bundle = {f"model.diffusion_model.{n}": array for n, array in tensors.items()}
    bundle["text_encoder.weight"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(bundle, path)
    assert_same_trees(opened(path).load(), pair)


def test_models_that_tensors_cannot_tell_apart_need_a_name(path):
    with pytest.raises(ValueError, match="the steps of.*'Pair-dev' or 'Pair-fast'"):
        opened(path, None)
    assert opened(path, "Pair-fast").config.steps == 4
    assert opened(path, PairConfig(steps=9)).config.steps == 9
    with pytest.raises(ValueError, match="single is 3, expected 2"):
        opened(path, PairConfig(single=2))


def test_another_family_is_named(path):
    with pytest.raises(ValueError, match="weights of Pair, but 'DiT-XL/2' is of DiT"):
        opened(path, "DiT-XL/2")
    with pytest.raises(ValueError, match="Did you mean 'Pair-fast'"):
        opened(path, "Pairfast")
    with pytest.raises(TypeError, match=r"\(DiTConfig, .*PairConfig\)"):
        opened(path, 3)


@pytest.mark.parametrize("layout", ["original", "native", "orbax"])
def test_export_and_its_config_alone(tmp_path, monkeypatch, pair, layout):
    monkeypatch.setattr(export, "FAMILIES", FAMILIES)
    place = tmp_path / ("a" if layout == "orbax" else "a.safetensors")
    written = export.export_weights(pair, place, layout)
    assert_same_trees(opened(written, None).load(), pair)
    with pytest.raises(ValueError, match="must be one of original, native, orbax"):
        export.export_weights(pair, tmp_path / "b", "diffusers")
