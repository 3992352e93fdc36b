"""Meshes, placement by paths, and what compiled programs communicate."""

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from support.processes import run_python

import gmm_guidance as gg
from benchmarks.program_cost import collectives_in, program_cost
from full_models.models.dit.config import DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.dit.weights import PLACEMENT
from gmm_guidance.sharding import batch_parts, placements

# One program with eight simulated devices answers all questions: JAX starts once.
_PROGRAM = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import gmm_guidance as gg
import gmm_guidance.blocks.shared_prefix
from full_models import as_stack
from full_models.models.dit.config import SIT, DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.dit.weights import PLACEMENT
from gmm_guidance._runtime.tensor_files import named_leaves
from benchmarks.program_cost import program_cost
from gmm_guidance.sharding import shard_batch

config = DiTConfig(input_size=8, patch_size=2, in_channels=4, width=32, depth=4,
    num_heads=4, num_labels=10, learn_sigma=False, **SIT)
network = as_stack(DiT(config, rngs=nnx.Rngs(0)))
leaves, tree = jax.tree.flatten(network)
keys = jax.random.split(jax.random.key(1), len(leaves))
network = jax.tree.unflatten(tree, [0.1 * jax.random.normal(k, a.shape)
    for k, a in zip(keys, leaves)])
labels = jnp.arange(16) % 10
rule = gg.S2Guidance(3.0, window=(0.0, 1.0))

def draw(network, num=16, **options):
    return np.asarray(gg.guided_sample(jax.random.key(0), network, labels[:num],
        num_samples=num, guidance=rule, schedule=gg.FlowSteps(3), solver="euler",
        **options))

def run(network, mesh, num=16):
    def f(network, labels, key):
        return gg.guided_sample(key, network, labels, num_samples=num, guidance=rule,
            schedule=gg.FlowSteps(3), solver="euler", mesh=mesh)
    inputs = network, labels[:num], jax.random.key(0)
    program = jax.jit(f).lower(*inputs).compile()
    cost, found = program_cost(program), program(*inputs)
    return {"flops": cost.flops, "bytes": cost.bytes_accessed,
        "collectives": [[c.kind, *map(list, c.shapes)] for c in cost.collectives],
        "placed": str(found.sharding.spec), **compared(np.asarray(found), alone[:num])}

def compared(found, wanted):
    return {"difference": float(np.abs(found - wanted).max()),
        "equal": found.tobytes() == wanted.tobytes()}

alone = draw(network, batch_size=2)
result = {"largest": float(np.abs(alone).max())}
for name, sizes in {"data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (4, 1, 2)}.items():
    mesh = gg.MeshConfig(*sizes).build()
    placed = gg.sharding.place(network, mesh, PLACEMENT)
    leaves = jax.tree.leaves(placed)
    result[name] = run(placed, mesh) | {
        "on_device": sum(a.addressable_shards[0].data.size for a in leaves),
        "parameters": sum(a.size for a in leaves),
        "shapes": sorted({tuple(a.shape) for a in leaves})}
one = gg.MeshConfig(1).build()
result["one"] = run(gg.sharding.place(network, one, PLACEMENT), one, 2)
mesh = gg.MeshConfig().build()
# Not in order, and not a multiple of the devices.
chosen = np.array([3, 0, 15, 7, 1, 2, 4, 5, 9], np.uint32)
found = gg.guided_sample(jax.random.key(0), network, labels[chosen], num_samples=9,
    indices=chosen, guidance=rule, schedule=gg.FlowSteps(3), solver="euler", mesh=mesh)
result["chosen"] = compared(np.asarray(found), alone[chosen])
seen = [gg.guided_sample(jax.random.key(0), network, labels[chosen], num_samples=9,
    indices=chosen, guidance=rule, schedule=gg.FlowSteps(3), solver="euler", mesh=m,
    record=("denoised", "masks"), progress=True) for m in (None, mesh)]
result["recorded"] = [float(jnp.abs(np.asarray(a, float) - np.asarray(b, float)).max())
    for a, b in zip(*map(jax.tree.leaves, seen))]
# Rows of a block as one batch, as on an accelerator.
jax.lax.platform_dependent = lambda *a, default=None, **others: default(*a)
jax.clear_caches()
result["batched_rows"] = run(gg.sharding.place(network, mesh, PLACEMENT), mesh)
# The toys: a mixture's closed form and a small network.
mixture = gg.presets.four_corners()
mesh = gg.MeshConfig().build()
exact = [gg.guided_sample(jax.random.key(2), gg.ExactDenoiser(mixture), 1,
    num_samples=64, guidance=gg.CFG(2.0), mesh=m) for m in (None, mesh)]
result["exact"] = float(jnp.abs(exact[0] - jnp.asarray(np.asarray(exact[1]))).max())
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def eight():
    output = run_python(textwrap.dedent(_PROGRAM), devices=8)
    return json.loads(output.split("RESULT")[1])


@pytest.mark.ci
def test_records_of_divided_samples_are_the_same(eight):
    assert len(eight["recorded"]) == 4 and max(eight["recorded"]) < 1e-5


@pytest.mark.ci
def test_dividing_samples_changes_no_bit_and_communicates_nothing(eight):
    found = eight["data"]
    assert found["equal"] and found["difference"] == 0.0
    assert found["collectives"] == []
    assert "data" in found["placed"]
    assert found["on_device"] == found["parameters"]


@pytest.mark.ci
def test_batched_rows_communicate_nothing_either(eight):
    found = eight["batched_rows"]
    assert found["collectives"] == []
    assert found["difference"] < 1e-5 * eight["largest"]


@pytest.mark.ci
def test_divided_parameters_are_gathered_and_activations_stay(eight):
    found = eight["fsdp"]
    # Summation in another order: a few units in the last place of the largest sample.
    assert found["difference"] < 1e-5 * eight["largest"]
    assert found["on_device"] < 0.35 * found["parameters"]
    shapes = {tuple(shape) for shape in found["shapes"]}
    of_parameters = {shape[1:] for shape in shapes} | shapes
    assert found["collectives"]
    for kind, *results in found["collectives"]:
        assert kind == "all-gather"
        assert all(tuple(shape) in of_parameters for shape in results)


@pytest.mark.ci
def test_divided_products_are_summed_once_a_block(eight):
    found = eight["tensor"]
    assert found["difference"] < 1e-5 * eight["largest"]
    assert {kind for kind, *_ in found["collectives"]} == {"all-reduce"}


@pytest.mark.ci
def test_work_on_a_device_does_not_grow_with_devices(eight):
    one, many = eight["one"], eight["data"]
    assert one["equal"]
    assert many["flops"] == pytest.approx(one["flops"], rel=1e-3)
    assert many["bytes"] == pytest.approx(one["bytes"], rel=1e-2)


@pytest.mark.ci
def test_uneven_and_scattered_batches_are_the_same_samples(eight):
    assert eight["chosen"]["difference"] < 1e-5 * eight["largest"]
    assert eight["exact"] < 1e-5


def test_one_device_as_a_mesh_changes_no_bit():
    options = {"num_samples": 5, "guidance": gg.CFG(2.0), "schedule": gg.Karras(4)}
    denoiser = gg.ExactDenoiser(gg.presets.four_corners())
    plain, on_mesh = (
        gg.guided_sample(jax.random.key(0), denoiser, 1, mesh=mesh, **options)
        for mesh in (None, gg.MeshConfig(1).build())
    )
    np.testing.assert_array_equal(plain, on_mesh)


def test_mesh_axes_are_divided_by_the_compiler():
    mesh = gg.MeshConfig().build()
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert dict(mesh.shape) == {
        "data": jax.device_count(),
        "fsdp": 1,
        "tensor": 1,
    }
    assert batch_parts(mesh) == list(range(jax.device_count()))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 1, 1), "data >= 0"),
        ((1, 0, 1), "fsdp >= 1"),
        ((64, 1, 1), "needs 64 devices, but there are"),
        ((0, 64, 1), "a multiple of 64"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        gg.MeshConfig(*sizes).build()


def test_mesh_in_words():
    assert gg.MeshConfig.parse("") == gg.MeshConfig()
    assert gg.MeshConfig.parse("data=4, fsdp=2") == gg.MeshConfig(4, 2)
    for words in ("model=2", "data", "data=2,data=3", "data=-1", "data=2;fsdp=1"):
        with pytest.raises(ValueError, match="data=4,fsdp=2"):
            gg.MeshConfig.parse(words)


def test_the_first_rule_counts_and_uneven_axes_stay_whole():
    mesh = gg.MeshConfig(1).build()
    tree = {"a": {"kernel": jnp.zeros((4, 6))}, "b": jnp.zeros(3)}
    rules = ((r"a\.kernel", PartitionSpec("fsdp")), (r"kernel", PartitionSpec()))
    found = placements(tree, mesh, rules)
    assert found["a"]["kernel"].spec == PartitionSpec("fsdp")
    assert found["b"].spec == PartitionSpec()
    with pytest.raises(ValueError, match="names 2 axes .* but b has shape"):
        placements(tree, mesh, ((r"b", PartitionSpec("fsdp", "tensor")),))


def test_every_large_parameter_of_a_dit_has_a_rule():
    config = DiTConfig.named("DiT-S/2")
    network = jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    mesh = gg.MeshConfig(1).build()
    found = placements(network, mesh, PLACEMENT)
    divided = sum(
        leaf.size
        for leaf, sharding in zip(
            jax.tree.leaves(network), jax.tree.leaves(found), strict=True
        )
        if any(sharding.spec)
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(network))
    assert divided > 0.97 * total


def test_placed_network_is_the_same():
    config = DiTConfig(
        input_size=4, patch_size=2, in_channels=1, width=8, depth=2, num_heads=2
    )
    network = jax.jit(lambda: DiT(config, rngs=nnx.Rngs(0)))()
    placed = gg.sharding.place(network, gg.MeshConfig(1).build(), PLACEMENT)
    assert isinstance(placed, DiT)
    for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_collectives_of_a_program_are_found_with_their_bytes():
    text = """
      %all-gather.1 = f32[64,128]{1,0} all-gather(%p), channel_id=1, dimensions={0}
      %ar = (f32[4,16]{1,0}, bf16[8]{0}) all-reduce-start(%a, %b), channel_id=2
      ROOT %add = f32[4]{0} add(%x, %y)
    """
    gather, reduce = collectives_in(text)
    assert gather == ("all-gather", ((64, 128),), 4 * 64 * 128)
    assert reduce == ("all-reduce", ((4, 16), (8,)), 4 * 64 + 2 * 8)


def test_flops_are_those_of_the_product():
    n = 64
    program = jax.jit(lambda a, b: a @ b).lower(jnp.ones((n, n)), jnp.ones((n, n)))
    found = program_cost(program.compile())
    assert found.flops == pytest.approx(2 * n**3, rel=0.01)
    assert found.collectives == ()


@pytest.mark.parametrize(
    ("indices", "first"),
    [
        (np.arange(3), 0),
        (np.arange(4.0), 0),
        (np.array([0, 1, 2, -1]), 0),
        (np.arange(4), 2),
    ],
)
def test_indices_that_cannot_be(indices, first):
    with pytest.raises(ValueError, match="indices"):
        gg.guided_sample(
            jax.random.key(0),
            gg.ExactDenoiser(gg.presets.two_modes()),
            0,
            num_samples=4,
            indices=indices,
            first_index=first,
        )


@pytest.mark.ci
def test_weights_go_straight_to_their_devices(tmp_path):
    """Each layout, divided over four devices: the values of one, in four parts."""
    output = run_python(
        f"""
import jax, numpy as np
from pathlib import Path
from flax import nnx
import gmm_guidance as gg
from full_models import as_stack, export_weights, load_weights
from full_models.models.dit.config import DiTConfig
from full_models.models.dit.network import DiT
config = DiTConfig(input_size=4, patch_size=2, in_channels=2, width=16, depth=2,
    num_heads=2, num_labels=3)
network = jax.jit(lambda: as_stack(DiT(config, rngs=nnx.Rngs(0))))()
mesh = gg.MeshConfig(fsdp=4).build()
for layout in ("native", "orbax", "diffusers"):
    path = Path({str(tmp_path)!r}) / (
        layout + (".safetensors" if layout == "native" else ""))
    export_weights(network, path, layout)
    found = load_weights(path, mesh=mesh)
    kernel = found.blocks.mlp.fc1.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (2, 4, 64), kernel.sharding
    for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(found), strict=True):
        assert b.sharding.mesh == mesh
        np.testing.assert_array_equal(a, b)
print("all layouts")
""",
        devices=4,
    )
    assert "all layouts" in output
