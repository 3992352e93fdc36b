"""What of a denoiser is traced, and that replaced weights are never ignored."""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gmm_guidance as gg
from gmm_guidance._runtime.pytree import join, split

X = np.ones((3, 2), np.float32)
GAIN = np.ones((1, 2), np.float32)


def value(denoiser):
    return float(gg.guided_denoise(denoiser, gg.Unguided(), X, 1.0)[0, 0])


class Holder:
    def __init__(self, gain):
        self.gain = gain

    def denoise(self, x, sigma, label):
        return self.gain * x


class Callable(Holder):
    __call__ = Holder.denoise


class Slots:
    __slots__ = ("gain",)

    def __call__(self, x, sigma, label):
        return self.gain * x


def with_global(x, sigma, label):
    return GAIN * x


def test_replaced_weights_of_methods_and_objects_are_seen():
    for make in (
        lambda h: h.denoise,
        lambda h: lambda x, sigma, label: h.denoise(x, sigma, label),
        lambda h: functools.partial(h.denoise),
    ):
        holder = Holder(jnp.ones((1, 2)))
        denoiser = make(holder)
        assert value(denoiser) == 1.0
        for gain in (jnp.full((1, 2), 2.0), 3.0, np.full((1, 2), 4.0, np.float32)):
            holder.gain = gain
            assert value(denoiser) == float(np.ravel(gain)[0])
        holder.gain[:] = 5.0  # in place
        assert value(denoiser) == 5.0
    for holder in (Callable(jnp.ones((1, 2))), Slots()):
        for gain in (1.0, 2.0):
            holder.gain = jnp.full((1, 2), gain)
            assert value(holder) == gain


def test_replaced_variables_of_functions_are_seen(monkeypatch):
    weights = jnp.ones((1, 2))

    def closure(x, sigma, label):
        return weights * x

    assert value(closure) == value(with_global) == 1.0
    weights = jnp.full((1, 2), 2.0)
    monkeypatch.setitem(globals(), "GAIN", 3.0 * GAIN)
    assert (value(closure), value(with_global)) == (2.0, 3.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Node:
    gain: jax.Array
    scale: float = 2.0
    flag: bool = True

    def __call__(self, x, sigma, label):
        return self.gain * x if self.flag and self.scale > 1 else x

    denoise = __call__


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, sigma, label):
        return x * self.param("gain", nn.initializers.ones, (1, 2))


def scaled(gain, x, sigma, label):
    return gain * x


@pytest.mark.parametrize(
    "make",
    [
        lambda gain: Node(gain),
        lambda gain: Node(gain).denoise,
        lambda gain: functools.partial(scaled, gain),
        lambda gain: jax.tree_util.Partial(scaled, gain),
        lambda gain: Linen().bind({"params": {"gain": gain}}),
    ],
    ids=["pytree", "method", "partial", "Partial", "linen"],
)
def test_arrays_are_traced_and_need_no_compilation(make):
    keys = []
    for gain in (jnp.ones((1, 2)), jnp.full((1, 2), 2.0)):
        arrays, static = split(make(gain))
        assert sum(a is not None for a in arrays) == 1
        keys.append(static)
        assert float(join(arrays, static)(X, 1.0, None)[0, 0]) == float(gain[0, 0])
    assert keys[0] == keys[1] and hash(keys[0]) == hash(keys[1])


def test_numbers_are_structure_of_denoisers_and_traced_in_rules():
    assert (
        split(Node(jnp.ones((1, 2)), scale=2.0))[1]
        != split(Node(jnp.ones((1, 2)), 3.0))[1]
    )
    assert split(gg.CFG(2.0))[1] == split(gg.CFG(3.0))[1]
    inside = gg.AutoGuidance(Node(jnp.ones((1, 2))), 2.0)
    arrays, _ = split(inside)
    assert [a for a in arrays if isinstance(a, float)] == [2.0]


def test_equinox_flags_and_train_mode():
    class Net(eqx.Module):
        drop: eqx.nn.Dropout

        def __call__(self, x, sigma, label):
            return self.drop(x)

    assert value(eqx.nn.inference_mode(Net(eqx.nn.Dropout(0.5)))) == 1.0

    class Training(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x, sigma, label):
            return self.drop(x)

    net = Training()
    with pytest.raises(TypeError, match=r"Training changes its own state.*eval\(\)"):
        gg.guided_sample(jax.random.key(0), net, num_samples=1, sample_shape=(2,))
    net.eval()
    assert value(net) == 1.0


def test_unhashable_parts_are_refused_by_class_and_remedy():
    @dataclasses.dataclass
    class Unhashable:
        gain: float = 1.0

        def __call__(self, x, sigma, label):
            return x

    with pytest.raises(TypeError, match=r"unhashable Unhashable.*register_dataclass"):
        value(Unhashable())
