"""Mutated inputs of each format that is read, and what became of them.

::

    PYTHONPATH=.:tests python -m support.fuzz --out benchmarks/results/fuzz.json

An input is survived if it is refused by a ``ValueError`` or ``OSError``, or read with
the values that were written; at most 15 s and 1 GB, no code executed, nothing written
beside it. Other values of files without checksums (published formats), or whose
checksums were renewed, are counted apart. Each format runs in a process of its own,
since an input may end it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECONDS, MEGABYTES = 15, 1024
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**62, 10**30, 1e308, float("nan"), float("inf"), "",
    "../x", "/etc/passwd", "\0", "x" * 5000, "<script>", [], {}, [[]], [1, "a"],
    {"a": {"b": []}}, "0" * 64,
)  # fmt: skip
# Instructions of pickles, with arguments: calls, names, memo, marks, lengths.
OPCODES = (
    b"cos\nsystem\n(X\x04\0\0\0trueter", b"cbuiltins\neval\n", b"R", b"b", b"\x81",
    b"(", b"t", b"u", b"s", b"e", b"0", b"2", b")", b"}", b"]", b"Q", b"h\x05",
    b"q\xff", b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8a\xff", b"\x94",
    b"\x93", b"N.", b"iposix\nsystem\n", b"J\xff\xff\xff\xff",
    b"\x82\x01", b"\x8e" + b"\xff" * 8,
)  # fmt: skip


class Format(NamedTuple):
    """A format of files.

    Attributes:
        make: writes files into a folder.
        read: reads them; what it returns is compared by its bytes.
        targets: names of the files that are mutated.
        sealed: whether checksums cover all that is read.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    targets: tuple[str, ...]
    sealed: bool = True


def digest(value: Any) -> str:
    """Of arrays, numbers and text in containers."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                add(str(key))
                add(part[key])
        elif isinstance(part, (list, tuple)):
            total.update(f"[{len(part)}".encode())
            for one in part:
                add(one)
        elif isinstance(part, np.ndarray) or hasattr(part, "__array__"):
            array = np.asarray(part)
            total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()


# --- formats


def _state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"blocks.{i}.w": rng.normal(size=(4, 6)).astype("f4") for i in range(3)}


def _tensors(stored: Any) -> Any:
    return {name: tensor.read() for name, tensor in stored.items()}


def _model() -> Any:
    from oracles.dits import random_dit

    return random_dit()


def _weights(layout: str, name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        from full_models import export_weights

        export_weights(_model(), folder / name, layout)

    return make


def _opened(name: str, model: bool = False) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from oracles.dits import TINY

        from full_models.weights.load import open_checkpoint
        from full_models.weights.table import check_names

        found = open_checkpoint(folder / name, TINY if model else None)
        if found.layout in found.family.layouts:
            layout = found.family.layouts[found.layout]
            check_names(layout.table(found.config, found.stored), found.stored, name)
        return repr(found.config), _tensors(found.stored)

    return read


def _published(folder: Path) -> None:
    import safetensors.numpy
    from oracles.dits import TINY

    from full_models.models.dit.weights import official_table
    from full_models.weights.table import dump

    tensors = dump(_model().backbone, official_table(TINY))
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")


def _make_pt(folder: Path) -> None:
    from oracles import torch_zip

    args = torch_zip.namespace(lr=1e-4, name="x", steps=[1, 2])
    content = {"ema": _state(), "model": _state(), "args": args}
    torch_zip.write(folder / "a.pt", content)


def _read_pt(folder: Path) -> Any:
    from full_models.weights.torch_file import read_torch

    return _tensors(read_torch(folder / "a.pt"))


def _make_index(folder: Path) -> None:
    import safetensors.numpy

    state = _state()
    for i, (name, array) in enumerate(state.items()):
        safetensors.numpy.save_file({name: array}, folder / f"{i}.safetensors")
    places = {name: f"{i}.safetensors" for i, name in enumerate(state)}
    (folder / "a.index.json").write_text(json.dumps({"weight_map": places}))


def _read_index(folder: Path) -> Any:
    from full_models.weights.safetensors_file import read_safetensors

    return _tensors(read_safetensors(folder / "a.index.json"))


def _make_set(folder: Path) -> None:
    from full_models.generation.shard_set import ShardArrays, ShardSet

    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    made = ShardSet(folder, {"seed": 0}, np.arange(4), 2, "npz")
    made.write_plan()
    for s in made.shards():
        part = slice(s.first, s.first + s.count)
        made.write(s, ShardArrays(made.labels[part], images[part], None))
    made.write_manifest()


def _read_set(folder: Path) -> Any:
    from full_models.generation.pack import pack

    written = pack(folder, folder / "packed", "npz", lambda number: None)
    with np.load(written) as file:
        return dict(file)


def _make_sweep(folder: Path) -> None:
    text = 'num = 2\nlabels = "5"\n[[rules]]\nname = "cfg"\ncfg_scale = [1.0, 2.0]\n'
    (folder / "a.toml").write_text(text)


def _read_sweep(folder: Path) -> Any:
    from full_models.commands.sweep import read_grid

    options = dict(seed=0, num=1, steps=1, cfg_scale=1.0, labels="all")
    return [tuple(s) for s in read_grid(folder / "a.toml", options)]


def _make_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "a.npz",
        features=rng.normal(size=(20, 4)),
        logits=rng.normal(size=(20, 3)),
    )


def _read_features(folder: Path) -> Any:
    from full_models.statistics.features import load_features

    found = load_features(folder / "a.npz")
    return found.features, found.logits


def _make_images(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.savez(folder / "a.npz", arr_0=images)
    from full_models.generation.images import save_png

    (folder / "png").mkdir()
    for i, image in enumerate(images):
        save_png(folder / "png" / f"{i}.png", image)


def _read_images(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from full_models.statistics.images import open_images

        return list(open_images(folder / name).batches(2))

    return read


def _make_calibration(folder: Path) -> None:
    import gmm_guidance as gg

    products = np.random.default_rng(0).normal(size=(2, 4, 3, 3))
    gg.Calibration(
        ("cfg", (1,)), np.array([0.5, 1.0]), products, None, 1.0, 64, np.ones(3) / 3
    ).save(folder / "a.json")


def _read_calibration(folder: Path) -> Any:
    import dataclasses

    import gmm_guidance as gg

    found = gg.Calibration.load(folder / "a.json")
    return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}


def _make_tree(folder: Path) -> None:
    from gmm_guidance._runtime.tensor_files import save_tree

    save_tree(folder / "a.safetensors", _state(), {"kind": "x", "width": 8})


def _read_tree(folder: Path) -> Any:
    from gmm_guidance._runtime.tensor_files import load_description, load_tree

    path = folder / "a.safetensors"
    return load_description(path), load_tree(path, _state())


def _make_prompts(folder: Path) -> None:
    from full_models.prompts.prompts import INDEX, KIND, VERSION
    from gmm_guidance._runtime.schema import sealed
    from gmm_guidance._runtime.tensor_files import write_tensors

    rng = np.random.default_rng(0)
    shapes = {"t5": (2, 3, 8), "pooled": (2, 4)}
    tensors = {n: rng.normal(size=s).astype("f4") for n, s in shapes.items()}
    tensors |= {f"negative.{n}": a[:1].copy() for n, a in tensors.items()}
    said = {"kind": KIND, "version": str(VERSION), "family": "flux1"}
    said |= {"prompts": '["a", "b"]', "ids": '["0", "1"]'}
    write_tensors(tensors, folder / "00000.safetensors", said)
    index = {"kind": KIND, "shards": ["00000.safetensors"]}
    (folder / INDEX).write_text(json.dumps(sealed(index)))


def _read_prompts(folder: Path) -> Any:
    import dataclasses

    from full_models.prompts.prompts import load_prompts

    found = load_prompts(folder)
    return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}


def _make_vae(folder: Path) -> None:
    fields = {
        "_class_name": "AutoencoderKL", "latent_channels": 4, "layers_per_block": 1,
        "block_out_channels": [8, 16], "norm_num_groups": 4, "scaling_factor": 0.18,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))


def _read_vae(folder: Path) -> Any:
    from full_models.models.autoencoder.config import KLConfig
    from gmm_guidance._runtime.schema import Object, read_json

    return repr(KLConfig.from_diffusers(read_json(folder / "config.json", Object)))


FORMATS: dict[str, Format] = {
    "pt": Format(_make_pt, _read_pt, ("a.pt",)),
    "native": Format(
        _weights("native", "a.safetensors"),
        _opened("a.safetensors"),
        ("a.safetensors",),
    ),
    "published safetensors": Format(
        _published, _opened("a.safetensors", True), ("a.safetensors",), sealed=False
    ),
    "diffusers": Format(
        _weights("diffusers", "d"), _opened("d"), ("d/config.json",), sealed=False
    ),
    "index": Format(_make_index, _read_index, ("a.index.json",), sealed=False),
    "image set": Format(
        _make_set,
        _read_set,
        ("plan.json", "labels.npy", "shard-00001.json", "shard-00001.npz"),
    ),
    "sweep": Format(_make_sweep, _read_sweep, ("a.toml",), sealed=False),
    "features": Format(_make_arrays, _read_features, ("a.npz",)),
    "images npz": Format(_make_images, _read_images("a.npz"), ("a.npz",)),
    "images png": Format(_make_images, _read_images("png"), ("png/1.png",)),
    "calibration": Format(_make_calibration, _read_calibration, ("a.json",)),
    "network": Format(_make_tree, _read_tree, ("a.safetensors",)),
    "prompts": Format(
        _make_prompts, _read_prompts, ("00000.safetensors", "index.json")
    ),
    "autoencoder config": Format(_make_vae, _read_vae, ("config.json",), sealed=False),
}


# --- mutations


def mutated(data: bytes, rng: random.Random, name: str) -> tuple[str, bytes]:
    """A kind of mutation, and the mutated file."""
    kinds = ["flip", "byte", "cut", "insert", "repeat", "zero", "swap", "empty"]
    if name.endswith(".json"):
        kinds += ["json"] * 8
    if name.endswith(".safetensors"):
        kinds += ["header"] * 6
    if name.endswith(".pt"):
        kinds += ["pickle"] * 10
    if name.endswith(".npz"):
        kinds += ["npy"] * 4
    kind = rng.choice(kinds)
    new = bytearray(data)
    i = rng.randrange(len(data))
    j = min(len(data), i + rng.choice((1, 4, 16, 200)))
    if kind == "flip":
        new[i] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        new[i] = rng.randrange(256)
    elif kind == "cut":
        del new[i:]
    elif kind == "insert":
        new[i:i] = rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == "repeat":
        new[i:i] = new[i:j]
    elif kind == "zero":
        new[i:j] = bytes(j - i)
    elif kind == "swap":
        del new[i:j]
        k = rng.randrange(len(new) + 1)
        new[k:k] = data[i:j]
    elif kind == "empty":
        new = bytearray(
            rng.choice((b"", b"[" * 50_000, b"\xef\xbb\xbf", b"null", b"{}"))
        )
    elif kind == "json":
        new = bytearray(_json_mutated(json.loads(data), rng).encode())
    elif kind == "header":
        (length,) = struct.unpack("<Q", data[:8])
        text = _json_mutated(json.loads(data[8 : 8 + length]), rng).encode()
        new = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    else:
        new = bytearray(_zip_mutated(data, rng, kind))
    return kind, bytes(new)


def _json_mutated(value: Any, rng: random.Random) -> str:
    places: list[tuple[Any, Any]] = []

    def visit(part: Any) -> None:
        keys = part if isinstance(part, dict) else range(len(part))
        for key in keys:
            places.append((part, key))
            if isinstance(part[key], (dict, list)) and part[key]:
                visit(part[key])

    if isinstance(value, (dict, list)):
        visit(value)
    if places:
        part, key = rng.choice(places)
        if rng.random() < 0.2:
            del part[key]
        else:
            part[key] = rng.choice(NASTY)
            if isinstance(part, dict) and rng.random() < 0.1:
                part["another"] = rng.choice(NASTY)
    return json.dumps(value)


def _zip_mutated(data: bytes, rng: random.Random, kind: str) -> bytes:
    """An entry changed, with a renewed checksum of the zip file."""
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    ending = "data.pkl" if kind == "pickle" else ".npy"
    name = rng.choice([n for n in entries if n.endswith(ending)])
    part = bytearray(entries[name])
    # The header of an array; all of a pickle.
    i = rng.randrange(len(part) if kind == "pickle" else min(len(part), 128))
    if kind == "pickle" and rng.random() < 0.7:
        part[i:i] = rng.choice(OPCODES)
    elif rng.random() < 0.5:
        part[i] = rng.randrange(256)
    else:
        part[i : i + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(4))
    entries[name] = bytes(part)
    if rng.random() < 0.1:
        entries[rng.choice(("../x", "/tmp/x", "a/b.npy", ".data/serialization_id"))] = (
            b""
        )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((0, zipfile.ZIP_DEFLATED))) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return made.getvalue()


# --- the worker


def run(name: str, seed: int, count: int) -> dict[str, Any]:
    """Try mutated inputs of a format in this process."""
    form = FORMATS[name]
    violations: list[str] = []
    allowed: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not allowed:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class"):
            violations.append(f"{event} {arguments!r:.100}")
        elif event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & 3
            )
            if writes and not str(path).startswith((*allowed, "/dev/null")):
                violations.append(f"wrote {path!r:.100}")

    sys.addaudithook(watch)
    results: Counter[str] = Counter()
    failures: list[str] = []
    root = Path(tempfile.mkdtemp())
    made = root / "made"
    made.mkdir()
    form.make(made)
    shutil.copytree(made, root / "first")
    expected = digest(form.read(root / "first"))
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        target = rng.choice(form.targets)
        kind, data = mutated((made / target).read_bytes(), rng, target)
        case = root / "case"
        shutil.copytree(made, case)
        (case / target).write_bytes(data)
        allowed[:] = [str(case)]
        started = time.monotonic()
        signal.alarm(SECONDS)
        try:
            found = digest(form.read(case))
            if found == expected:
                outcome = "right"
            else:
                renewed = kind in ("pickle", "npy") or not form.sealed
                outcome = "read as it is" if renewed else "other values"
        except TimeoutError:
            outcome = "time"
        except (ValueError, OSError):
            outcome = "refused"
        except BaseException as error:
            outcome = "unclear error"
            failures.append(f"{number} {kind}: {type(error).__name__}: {error!s:.100}")
        signal.alarm(0)
        allowed.clear()
        slowest = max(slowest, time.monotonic() - started)
        if outcome in ("time", "other values"):
            failures.append(f"{number} {kind} of {target}: {outcome}")
        results[outcome] += 1
        shutil.rmtree(case, ignore_errors=True)
    shutil.rmtree(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "tried": count,
        **dict(sorted(results.items())),
        "code executed or written outside": violations[:10],
        "failures": failures[:20],
        "slowest_seconds": round(slowest, 2),
        "peak_megabytes_above_start": peak >> 10,
    }


def run_apart(name: str, seed: int, count: int) -> dict[str, Any]:
    """``run`` in a process of its own."""
    command = [sys.executable, "-m", "support.fuzz", "--format", name]
    command += ["--seed", str(seed), "--count", str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if ended.returncode:
        return {"tried": count, "failures": [f"ended by {ended.returncode}: "
                                             f"{ended.stderr[-500:]}"]}  # fmt: skip
    return json.loads(ended.stdout)


def survived(result: dict[str, Any]) -> bool:
    """Whether all inputs of a format were."""
    return (
        not result["failures"]
        and not result["code executed or written outside"]
        and result["peak_megabytes_above_start"] < MEGABYTES
        and result["slowest_seconds"] < SECONDS
    )


def main() -> None:
    """Run one format, or all and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.format:
        print(json.dumps(run(given.format, given.seed, given.count)))
        return
    record = {n: run_apart(n, given.seed, given.count) for n in FORMATS}
    total = sum(r["tried"] for r in record.values())
    text = json.dumps({"seed": given.seed, "tried": total, "formats": record}, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
