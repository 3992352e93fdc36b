"""Files of PyTorch: every tensor exactly, nothing of the file run, clear refusals."""

import argparse
import dataclasses
import os
import pickle
import time
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch_zip
from oracles.torch_zip import STORAGES, Call, Global, New, Persistent, Saved

from full_models.weights import torch_file
from full_models.weights.torch_file import read_torch

RNG = np.random.default_rng(0)
ARRAY = RNG.normal(size=(3, 4)).astype(np.float32)
STATE = {"weight": ARRAY, "bias": np.arange(4, dtype=np.float32)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def torch_library():
    return pytest.importorskip("torch", reason="needs the oracle extra: torch")


def assert_same(stored, expected):
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        found = stored[name].read()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert stored[name].shape == array.shape
        assert found.tobytes() == array.tobytes()


# --- tensors


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", STORAGES)
def test_every_type(path, dtype, compress):
    values = jnp.dtype(dtype).type(1) * (RNG.normal(size=(2, 3, 5)) * 50)
    arrays = {"a": values.astype(jnp.dtype(dtype)), "b": np.ones((), jnp.dtype(dtype))}
    torch_zip.write(path, arrays, compress=compress)
    assert_same(read_torch(path), arrays)
    words = {"float32": "F32", "bfloat16": "BF16", "bool": "BOOL", "uint8": "U8"}
    if dtype in words:
        assert read_torch(path)["a"].dtype == words[dtype]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (4, 3), (3, 1)),
        (0, (3, 4), (1, 3)),  # transposed
        (5, (2, 2), (3, 2)),  # from the middle, with gaps
        (2, (3, 4), (0, 1)),  # expanded
        (7, (), ()),
        (12, (0, 4), (4, 1)),  # empty, at the very end
        (11, (1, 1), (99, 99)),  # strides of single entries say nothing
    ],
)
def test_strides_and_offsets_within_a_shared_storage(
    path, offset, shape, strides, compress
):
    data = np.arange(12, dtype=np.float32)
    part = Saved("0", "float32", 12, offset, shape, strides, extra=(False, {}))
    whole = Saved("0", "float32", 12, 0, (12,), (1,), extra=(False, {}))
    content, storages = {"part": part, "whole": whole}, {"0": data.tobytes()}
    torch_zip.write(path, content, storages, compress=compress)
    expected = np.empty(shape, np.float32)
    for index in np.ndindex(*shape):
        expected[index] = data[offset + int(np.dot(index, strides or ()))]
    assert_same(read_torch(path), {"part": expected, "whole": data})


def test_tensors_are_read_when_asked_and_flipped_bits_noticed(path):
    torch_zip.write(path, STATE)
    stored = read_torch(path)
    content = bytearray(path.read_bytes())
    place = content.index(ARRAY.tobytes()) + 7
    content[place] ^= 0x40
    path.write_bytes(content)
    np.testing.assert_array_equal(stored["bias"].read(), STATE["bias"])
    with pytest.raises(ValueError, match="damaged.*another checksum"):
        stored["weight"].read()
    path.write_bytes(content[:place])
    with pytest.raises(ValueError, match="damaged|truncated"):
        stored["bias"].read()


def test_a_flipped_bit_beside_a_view_is_noticed(path):
    part = Saved("0", "float32", 12, 4, (2,), (1,), extra=(False, {}))
    torch_zip.write(path, {"part": part}, {"0": ARRAY.tobytes()})
    content = path.read_bytes().replace(ARRAY.tobytes()[:4], b"\1\2\3\4")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="another checksum"):
        read_torch(path)["part"].read()


@pytest.mark.ci
def test_files_without_checksums_are_read(path):
    torch = torch_library()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(3.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch(path), {"weight": np.arange(3, dtype=np.float32)})


def test_what_torch_saves(path):
    torch = torch_library()
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Linear(3, 2)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "columns": base[:, 1::3],
        "expanded": base[:1].expand(5, 8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "brain": base.bfloat16().T,
        "double": base.double(),
        "long": torch.arange(5),
        "flags": base > 0,
        "parameter": linear.weight,
        "again": linear.weight,
    }
    torch.save(tensors, path)
    expected = {
        name: tensor.detach().float().numpy() if name == "brain" else tensor.detach()
        for name, tensor in tensors.items()
    }
    expected = {name: np.ascontiguousarray(a) for name, a in expected.items()}
    expected["scalar"] = expected["scalar"].reshape(())
    expected["brain"] = expected["brain"].astype(jnp.bfloat16)
    assert_same(read_torch(path), expected)
    state = {name: t.detach().numpy() for name, t in linear.state_dict().items()}
    torch.save(linear.state_dict(), path)  # with the attribute _metadata
    assert_same(read_torch(path), state)


# --- where the weights are


@pytest.mark.parametrize(
    "keys, chosen",
    [
        (("model", "ema", "opt"), "ema"),
        (("state_dict", "model"), "model"),
        (("epoch", "state_dict"), "state_dict"),
        (("model", "model_ema"), "model_ema"),
        (("ema_model", "model"), "ema_model"),
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("model", "swa", "ema"), "ema"),
        (("schema", "model"), "model"),
        (("net",), "net"),
    ],
)
def test_entry_that_holds_the_weights(path, keys, chosen):
    content = {key: {"weight": ARRAY + i} for i, key in enumerate(keys)}
    content |= {"args": torch_zip.namespace(model="DiT-XL/2", lr=1e-4), "step": 7}
    torch_zip.write(path, content)
    assert_same(read_torch(path), {"weight": ARRAY + keys.index(chosen)})
    for i, key in enumerate(keys):
        assert_same(read_torch(path, root=key), {"weight": ARRAY + i})


@pytest.mark.parametrize(
    "content, root, message",
    [
        ({"net": STATE, "b": STATE, "n": 3}, None, "has 'net', 'b', 'n'. Name the"),
        ({"model": STATE, "ema_a": STATE, "ema_b": STATE}, None, "several averages"),
        ({"a": {"b": STATE}}, "a/c", "no entry 'c' in 'a'"),
        ({"net": STATE}, "ema", "no entry 'ema'; it has 'net'"),
        ({"ema": {"w": ARRAY, "s": {}}, "b": 1}, None, "also holds 's'. The file"),
        ({"ema": {}, "model": STATE}, None, "'ema'.* an empty one.* 'ema', 'model'"),
        ({"ema": [1]}, None, "must be a dictionary of tensors, got a list"),
        ({}, None, "it has nothing"),
        ([ARRAY], None, "a dictionary of tensors, got a list"),
        (ARRAY, None, "got a tensor; save model.state_dict"),
        ({1: ARRAY}, None, "names of tensors must be text, got 1"),
        ({"k" * 999: {}}, None, "it has 'k{59}\\.\\.\\.\\. Name"),
        (torch_zip.namespace(a=1), None, "got an object"),
    ],
)
def test_no_weights_where_they_should_be(path, content, root, message):
    torch_zip.write(path, content)
    with pytest.raises(ValueError, match=message):
        read_torch(path, root)


# --- nothing of the file is run


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_refused_and_not_run(path, tmp_path, protocol):
    mark = tmp_path / "ran"
    pickled = pickle.dumps({"weight": Bomb(mark)}, protocol)
    torch_zip.write_raw(path, pickled)
    with pytest.raises(ValueError, match=r"asks to run (posix|nt)\.system.*trust"):
        read_torch(path)
    assert not mark.exists()
    pickle.loads(pickled)  # the bomb is a real one
    assert mark.exists()


OS = Global("os", "system")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
NAMESPACE = Global("argparse", "Namespace")


@pytest.mark.parametrize(
    "content, message",
    [
        (Call(Global("builtins", "eval"), ("1",)), r"builtins\.eval"),
        (Call(Global("__builtin__", "exec"), ("1",)), r"__builtin__\.exec"),
        (Global("torch.hub", "load"), r"torch\.hub\.load"),
        (Call(Global("torch.storage", "_load_from_bytes"), ("x",)), "_load_from_bytes"),
        (Global("argparse", "Namespace.__init__"), "Namespace.__init__"),
        (Global("collections", "OrderedDict.__class__"), "__class__"),
        (Global("torch._utils", "_rebuild_tensor_v3"), "_rebuild_tensor_v3"),
        (Call(REBUILD, (1, 2, 3), {"__code__": 1}), "damaged"),
        (Call(Call(REBUILD, ()), ()), "damaged"),
        (New(REBUILD, {}), "damaged"),
        (New(NAMESPACE, {"a": OS}), r"run argparse\.Namespace"),
        (Call(Global("torch", "FloatStorage"), ()), "damaged"),
        (Persistent(("module", NAMESPACE, "0", "cpu", 1)), "a reference"),
        (Persistent(("storage", NAMESPACE, "0", "cpu", 1)), r"run argparse\.Namespace"),
        (Persistent("0"), "damaged"),
    ],
)
def test_other_requests_are_refused(path, content, message):
    torch_zip.write(path, {"weight": ARRAY, "other": content})
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_allowed_names_cannot_be_altered(path):
    """BUILD sets attributes; functions, classes and tensors have none to set."""
    tensor = Saved("0", "float32", 12, 0, (3, 4), (4, 1), extra=(False, {}))
    targets = {
        "function": REBUILD,
        "class": NAMESPACE,
        "storage": Global("torch", "FloatStorage"),
        "tensor": tensor,
        "ordered": Global("collections", "OrderedDict"),
    }
    for target in targets.values():
        for state in ({"shape": (99,), "_call": 1}, (None, {"shape": (99,)})):
            pickled = torch_zip._emit(target, {}) + torch_zip._emit(state, {}) + b"b"
            table = b"\x80\x02}" + torch_zip._emit("w", {}) + pickled + b"s."
            torch_zip.write_raw(path, table, {"0": ARRAY.tobytes()})
            with pytest.raises(ValueError, match="damaged|alter|must hold"):
                read_torch(path)
    torch_zip.write(path, STATE)
    assert_same(read_torch(path), STATE)


def test_attributes_of_dictionaries_and_namespaces_are_dropped(path):
    ordered = Call(Global("collections", "OrderedDict"), (), {"items": 3, "keys": 4})
    args = New(NAMESPACE, {"__class__": "x", "nested": {"deep": [1.5, None]}})
    torch_zip.write(path, {"model": STATE, "opt": {"state": ordered}, "args": args})
    assert_same(read_torch(path), STATE)
    assert not hasattr(argparse.Namespace(), "nested")


def test_objects_outside_of_the_weights_are_not_made(path, tmp_path):
    """Paths, types and NumPy's numbers among the arguments of a training; a command."""
    mark = tmp_path / "ran"
    for other in (
        Call(Global("pathlib", "PosixPath"), ("results",)),
        Call(Global("numpy._core.multiarray", "scalar"), (Global("numpy", "dtype"), 1)),
        Global("torch", "bfloat16"),
        Call(Global("torch", "Size"), ((2,),)),
        Call(OS, (f"touch {mark}",)),
    ):
        args = New(NAMESPACE, {"value": other})
        torch_zip.write(path, {"ema": STATE, "args": args, "more": other})
        assert_same(read_torch(path), STATE)
    assert not mark.exists()
    torch_zip.write(path, {"outer": {"ema": STATE | {"decay": 0.99}}})
    assert_same(read_torch(path, "outer/ema"), STATE)


@pytest.mark.ci
def test_what_torch_saves_of_a_training(path):
    torch = torch_library()
    args = argparse.Namespace(
        out=Path("results"), dtype=torch.bfloat16, n=np.float64(3)
    )
    args.device, args.size = torch.device("cpu"), torch.Size([2])
    ema = {"weight": torch.from_numpy(ARRAY)}
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    torch.save({"ema": ema, "args": args, "opt": optimizer}, path)
    assert_same(read_torch(path), {"weight": ARRAY})


# --- time and memory are bounded by the file

TWICE = b")" + b"2\x86" * 40  # a tuple of itself twice, 40 times: 2^40 leaves


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo index of 2^31
        b"\x80\x02}" + TWICE + b"K\x01s.",  # as a key
        b"\x80\x02(X\x07\0\0\0storage" + TWICE + b"NNNtQ.",  # as a storage
        b"\x80\x02(" + TWICE + b"NNNNtQ.",  # as its kind
        b"\x80\x02" + b"(" * 30_000 + b".",
        b"\x80\x02" + b"(t(t1" * 10_000 + b"N.",
        b"\x80\x02" + b"N0" * 25_000 + b"N.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB
    ],
    ids=range(8),
)
def test_small_pickles_take_little_time_and_memory(path, pickled, monkeypatch):
    monkeypatch.setattr(torch_file, "_MOST_INSTRUCTIONS", 50_000)  # in place of 10^6
    torch_zip.write_raw(path, pickled)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError, match=r"weights\.pt"):
        read_torch(path)
    assert time.process_time() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


# --- damage


@pytest.mark.parametrize(
    "tensor, message",
    [
        (Saved("0", "float32", 12, 1, (3, 4), (4, 1)), "ends at number 13 of .* of 12"),
        (Saved("0", "float32", 12, 0, (3, 4), (9, 1)), "ends at number 22"),
        (Saved("0", "float32", 12, 0, (10**9, 4), (0, 1)), "repeats the 12 numbers"),
        (Saved("0", "float64", 12, 0, (3, 4), (4, 1)), "96 bytes, but data/0 has 48"),
        (Saved("0", "float32", 13, 0, (3, 4), (4, 1)), "52 bytes, but data/0 has 48"),
        (Saved("1", "float32", 12, 0, (3, 4), (4, 1)), "data/1, which is missing"),
        (Saved("0", "float32", 12, -1, (3, 4), (4, 1)), "damaged"),
        (Saved("0", "float32", 12, 11, (3, 4), (-4, -1)), "damaged"),
        (Saved("0", "float32", 12, 0, (3, 4), (4,)), "damaged"),
        (Saved("0", "float32", 12, 0, (3, "4"), (4, 1)), "damaged"),
        (Saved("0", "float32", -12, 0, (3, 4), (4, 1)), "impossible size"),
        (Saved("0", "QInt8Storage", 12, 0, (3, 4), (4, 1)), r"torch\.QInt8Storage"),
        (
            Saved(
                "0", "float32", 12, 0, (3, 4), (4, 1), extra=(False, {}, {"neg": True})
            ),
            "pending operations",
        ),
    ],
)
def test_tensors_that_do_not_fit_their_storage(path, tensor, message):
    if not tensor.extra:
        tensor = dataclasses.replace(tensor, extra=(False, {}))
    torch_zip.write(path, {"w": tensor}, {"0": ARRAY.tobytes()})
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_truncated_files_say_so(path):
    content = torch_zip.write(path, STATE).read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        message = "truncated" if end >= 2 else "must be a zip file"
        with pytest.raises(ValueError, match=message):
            read_torch(path)


@pytest.mark.parametrize("compress", [False, True])
def test_damage_is_noticed_or_harmless_but_never_another_error(path, compress):
    content = bytearray(torch_zip.write(path, STATE, compress=compress).read_bytes())
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= int(RNG.integers(1, 256))
        path.write_bytes(changed)
        try:
            for tensor in read_torch(path).values():
                assert tensor.read().shape == tensor.shape
        except ValueError as error:
            assert str(path) in str(error)


def test_files_of_other_kinds(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read_torch(path)
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(ValueError, match="before version 1.6.*torch.save it again"):
        read_torch(path)
    path.write_text("a web page, say")
    with pytest.raises(ValueError, match="no file of torch.save"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(ValueError, match="must hold one data.pkl, found 0"):
        read_torch(path)
    torch_zip.write(path, STATE, byteorder=b"big")
    with pytest.raises(ValueError, match="little-endian numbers, got b'big'"):
        read_torch(path)
    torch_zip.write(path, STATE, byteorder=None)  # older files do not say
    assert_same(read_torch(path), STATE)


def test_legacy_format_as_torch_writes_it(path):
    torch = torch_library()
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="before version 1.6"):
        read_torch(path)
