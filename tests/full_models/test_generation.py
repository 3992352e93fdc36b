"""Large sets: planned, in shards, resumable, and never taken for whole when not."""

import errno
import hashlib
import json
import os
import shutil
import signal
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.processes import start

from full_models.generation import run, shard_set
from full_models.generation.pack import complete_set, pack
from full_models.generation.sampler import Batch
from full_models.generation.shard_set import ShardSet
from gmm_guidance._runtime.files import locked_folder, sha256
from gmm_guidance._runtime.interruption import Interrupted
from gmm_guidance._runtime.progress import Reporter

LABELS = np.arange(20, dtype=np.int32) % 3


class Drawer:
    """Samples that depend on index and label alone, without a network."""

    samples_at_once = 3

    def __init__(self, channels=3, before=lambda index: None):
        self.channels = channels
        self.before = before

    def draw(self, indices, labels):
        samples = np.zeros((len(indices), 4, 5, self.channels), np.float32)
        for place, (index, label) in enumerate(zip(indices, labels, strict=True)):
            self.before(int(index))
            rng = np.random.default_rng([int(index), int(label)])
            samples[place] = rng.uniform(-1, 1, samples.shape[1:])
        images = np.round(127.5 * (samples + 1)).astype(np.uint8)
        return Batch(samples, images if self.channels in (1, 3) else None)


def make_set(out, format="npz", run=None):
    return ShardSet(out, run or {"seed": 0}, LABELS, 6, format)


def fill(out, drawer=None, format="npz", run_options=None, **options):
    """Fill a directory; the numbers of the shards that were drawn."""
    shards, drawn = make_set(out, format, run_options), []
    write = shards.write

    def noted(shard, arrays):
        write(shard, arrays)
        drawn.append(shard.number)

    shards.write = noted
    with Reporter() as reporter:
        run.fill(shards, lambda: drawer or Drawer(), reporter, **options)
    return drawn


def contents(out):
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module", params=["npz", "png"])
def whole(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / request.param
    assert fill(out, format=request.param) == [0, 1, 2, 3]
    return request.param, out, contents(out)


def test_a_set_holds_what_was_planned(whole):
    format, out, _ = whole
    found = ShardSet.read(out)
    assert found.num == 20 and found.format == format
    np.testing.assert_array_equal(found.labels, LABELS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [r["count"] for r in manifest["shards"]] == [6, 6, 6, 2]
    images, labels = [], []
    for shard, record in zip(found.shards(), manifest["shards"], strict=True):
        assert sha256(out / record["file"]) == record["sha256"]
        arrays = found.read_shard(shard)
        images.append(arrays.images)
        labels.append(arrays.labels)
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)
    np.testing.assert_array_equal(
        np.concatenate(images), Drawer().draw(np.arange(20), LABELS).images
    )


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is tidied up."""


@pytest.mark.parametrize("at", range(14))
def test_killed_at_any_rename_it_goes_on_to_the_same_files(
    whole, at, tmp_path, monkeypatch
):
    """Each file counts from its rename on: die before the at-th, tidy nothing."""
    format, _, expected = whole
    out, count = tmp_path / "out", iter(range(1000))
    replace = os.replace

    def dying(source, target):
        if next(count) == at:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        patch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
        patch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)
        try:
            fill(out, format=format)
        except Killed:
            pass
    fill(out, format=format, resume=True)
    assert contents(out) == expected


def test_without_resume_a_begun_set_is_refused(whole):
    format, out, _ = whole
    with pytest.raises(FileExistsError, match="add --resume"):
        fill(out, format=format)
    assert fill(out, format=format, resume=True) == []


def test_another_configuration_is_refused(whole):
    format, out, expected = whole
    with pytest.raises(FileExistsError, match="another run: run.seed is 0, expected 1"):
        fill(out, format=format, run_options={"seed": 1}, resume=True)
    assert contents(out) == expected


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "record", "empty"])
def test_damaged_shards_are_found_and_made_again(whole, damage, tmp_path, capsys):
    format, _, expected = whole
    out = tmp_path / "out"
    fill(out, format=format)
    shard = out / ("shard-00001.npz" if format == "npz" else "shard-00001")
    file = shard if shard.is_file() else sorted(shard.iterdir())[2]
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    elif damage == "record":
        (out / "shard-00001.json").write_text("{")
    else:
        file.write_bytes(b"")
    shards = make_set(out, format)
    assert shards.fault(shards.shards()[1]) is not None
    with pytest.raises(ValueError, match="shard-00001.* is (damaged|absent)"):
        pack(out, tmp_path / "packed", "npz", lambda done: None)
    assert not (tmp_path / "packed").exists() or not list(
        (tmp_path / "packed").iterdir()
    )
    assert fill(out, format=format, resume=True) == [1]
    assert contents(out) == expected


def test_every_flipped_bit_of_a_shard_is_seen(whole):
    """A bit in each of 200 places, header, data and directory of the archive."""
    format, out, _ = whole
    if format == "png":
        pytest.skip("the same checksum; the archive has more kinds of bytes")
    shards = ShardSet.read(out)
    path = out / "shard-00002.npz"
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    try:
        for place in rng.integers(0, len(original), 200):
            damaged = bytearray(original)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            assert shards.fault(shards.shards()[2]) == "damaged"
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["plan.json", "labels.npy"])
def test_a_damaged_plan_is_refused(tmp_path, name):
    out = tmp_path / "out"
    fill(out)
    content = bytearray((out / name).read_bytes())
    content[-20] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged|do not belong together"):
        fill(out, resume=True)
    (out / name).write_bytes(content[:40])
    with pytest.raises(ValueError, match="damaged"):
        fill(out, resume=True)


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="found mine.txt"):
        fill(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        fill(tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["mine.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_shard(tmp_path, number):
    out = tmp_path / "out"

    def interrupt(index):
        if index == 7:  # in the second shard
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        fill(out, Drawer(before=interrupt))
    names = {p.name for p in out.glob("shard-*")}
    assert names == {f"shard-0000{i}.{s}" for i in (0, 1) for s in ("npz", "json")}
    assert not list(out.glob(".partial*"))
    assert fill(out, resume=True) == [2, 3]


def test_a_full_disk_leaves_whole_shards_and_says_how_to_go_on(tmp_path, monkeypatch):
    """Writing goes to a device that is full: the kernel's own error."""
    out, savez = tmp_path / "out", np.savez

    def full(file, **arrays):
        if arrays["index"][0] == 12:
            with open("/dev/full", "wb", buffering=0) as device:
                savez(device, **arrays)
        savez(file, **arrays)

    monkeypatch.setattr(shard_set.np, "savez", full)
    with pytest.raises(OSError, match="disk of .* is full.*--resume") as caught:
        fill(out)
    assert caught.value.errno == errno.ENOSPC
    assert not (out / "manifest.json").exists() and not list(out.glob(".partial*"))
    monkeypatch.undo()
    assert 2 in fill(out, resume=True)


def test_a_directory_that_cannot_be_written_is_an_error_at_once(tmp_path):
    """On /proc not even the superuser can make a directory."""

    def never(index):
        raise AssertionError("drew before looking at the directory")

    with pytest.raises(OSError, match=r"must be writable .*--out"):
        fill(Path("/proc/none/out"), Drawer(before=never))


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gmm_guidance._runtime.files import locked_folder\n"
        f"with locked_folder(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = start(["-c", code])
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(BlockingIOError, match=rf"process {holder.pid} on"):
            with locked_folder(tmp_path):
                pass
        with pytest.raises(BlockingIOError):
            fill(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked_folder(tmp_path):
        pass


def test_no_clock_decides(whole, tmp_path, monkeypatch):
    """The clock jumps back and forth, and files claim to be of the future."""
    format, _, expected = whole
    out, jumps = tmp_path / "out", iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 4e9)
    fill(out, format=format)
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9) if len(path.name) % 2 else (0, 0))
    (out / "manifest.json").unlink()
    assert fill(out, format=format, resume=True) == []
    assert contents(out) == expected


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    class Large(Drawer):
        def draw(self, indices, labels):
            samples = np.full((len(indices), 64, 64, 3), indices[0], np.float32)
            return Batch(samples, samples.astype(np.uint8))

    peaks = []
    for shards in (3, 30):
        labels = np.zeros(6 * shards, np.int32)
        tracemalloc.start()
        large = ShardSet(tmp_path / str(shards), {}, labels, 6, "npz")
        with Reporter() as reporter:
            run.fill(large, Large, reporter, keep_latents=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_shard = 6 * 64 * 64 * 3 * 5
    assert peaks[0] > one_shard
    assert peaks[1] < peaks[0] + one_shard


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["/tmp/escaped", "../escaped"] * 10),
        np.arange(20.0),
        np.arange(20, dtype=np.int32).reshape(20, 1),
        -np.arange(20, dtype=np.int32),
        np.zeros(19, np.int32),
    ],
    ids=lambda a: f"{a.dtype} {a.shape}",
)
def test_labels_of_others_never_decide_where_a_file_is_written(tmp_path, labels):
    out = tmp_path / "out"
    fill(out)
    np.save(out / "labels.npy", labels)  # with its checksum, as somebody else would
    plan = json.loads((out / "plan.json").read_text())
    plan["labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"labels.npy is damaged or of another kind"):
        pack(out, tmp_path / "packed", "by-label", lambda done: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "change",
    [
        {"num": "20"},
        {"num": 2**70},
        {"shard_size": 0},
        {"shard_size": 2.5},
        {"format": "../npz"},
        {"kind": None},
        {"run": []},
        {"more": 1},
        {"labels_sha256": 3},
    ],
    ids=str,
)
def test_plans_are_checked_by_their_schema(tmp_path, change):
    make_set(tmp_path).write_plan()
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | change))
    with pytest.raises(ValueError, match=r"plan.json is damaged or of another kind"):
        ShardSet.read(tmp_path)


def test_links_in_a_set_are_removed_and_not_followed(tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    fill(out, format="png")
    victim.mkdir()
    (victim / "file").write_text("precious")
    (out / ".partial-x").symlink_to(victim)
    shutil.rmtree(out / "shard-00001")
    (out / "shard-00001").symlink_to(victim)
    assert fill(out, format="png", resume=True) == [1]
    assert (victim / "file").read_text() == "precious"
    assert not (out / "shard-00001").is_symlink()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((6, 3, 4, 3), np.uint8)}, "as those of the first shard"),
        ({"arr_0": np.zeros((6, 4, 5, 4), np.uint8)}, r"arr_0 are uint8 \(6, 4, 5, 4"),
        ({"arr_0": np.zeros((6, 4, 5, 3))}, "arr_0 are float64"),
        ({"arr_0": np.zeros((5, 4, 5, 3), np.uint8)}, r"arr_0 are uint8 \(5"),
        ({"labels": np.zeros(6, np.int32)}, "not those of the plan"),
        ({"labels": None}, "must hold labels and images"),
        (None, "no .npz file"),
    ],
    ids=str,
)
def test_shards_whose_record_fits_but_not_their_content(tmp_path, arrays, message):
    out = tmp_path / "out"
    fill(out)
    path = out / "shard-00001.npz"
    with np.load(path) as file:
        content = dict(file) | (arrays or {})
    np.savez(path, **{n: a for n, a in content.items() if a is not None})
    if arrays is None:
        path.write_bytes(path.read_bytes()[:-30])
    record = json.loads((out / "shard-00001.json").read_text())
    record["sha256"] = sha256(path)
    (out / "shard-00001.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        pack(out, tmp_path, "npz", lambda done: None)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("channels", [1, 3])
def test_packed_sets_are_what_evaluators_read(tmp_path, channels):
    out = tmp_path / "out"
    fill(out, Drawer(channels))
    images = Drawer(channels).draw(np.arange(20), LABELS).images
    path = pack(out, tmp_path, "npz", lambda done: None)
    assert path.name == "samples_20x4x5x3.npz"
    with np.load(path) as file:
        assert file.files[0] == "arr_0" and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(
            file["arr_0"], np.broadcast_to(images, (20, 4, 5, 3))
        )
        np.testing.assert_array_equal(file["labels"], LABELS)
    folder = pack(out, tmp_path / "by", "by-label", lambda done: None)
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2"]
    pixels = np.asarray(Image.open(folder / "1" / "000000004.png"))
    np.testing.assert_array_equal(pixels.reshape(images[4].shape), images[4])
    plain = pack(out, tmp_path / "plain", "folder", lambda done: None)
    assert len(list(plain.glob("*.png"))) == 20
    with pytest.raises(FileExistsError, match="exists already"):
        pack(out, tmp_path, "npz", lambda done: None)


def test_what_is_not_complete_is_not_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no set of samples"):
        complete_set(tmp_path)
    out = tmp_path / "out"
    fill(out)
    (out / "shard-00002.json").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 shards are missing \(shard-00002\)"):
        complete_set(out)
    latents = tmp_path / "latents"
    fill(latents, Drawer(channels=4))
    with pytest.raises(ValueError, match="latents without images"):
        pack(latents, tmp_path, "npz", lambda done: None)


def test_latents_are_kept_where_there_are_no_images_or_they_are_wanted(tmp_path):
    for name, drawer, keep in (("a", Drawer(4), False), ("b", Drawer(3), True)):
        out = tmp_path / name
        fill(out, drawer, keep_latents=keep)
        shards = ShardSet.read(out)
        found = shards.read_shard(shards.shards()[1]).samples
        wanted = drawer.draw(np.arange(6, 12), LABELS[6:12]).samples
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("labels", "size"), [(LABELS, 0), (LABELS[:0], 5)])
def test_plans_of_nothing_are_refused(labels, size):
    with pytest.raises(ValueError, match="must be at least 1"):
        ShardSet(Path(), {}, labels, size, "npz")


@pytest.mark.ci
def test_real_kills_at_file_operations(tmp_path):
    """A process that ends without a word at its n-th file operation, and goes on."""
    reference = tmp_path / "reference"
    fill(reference)
    code = f"""
        import os, sys
        sys.path[:0] = [".", "tests"]
        from pathlib import Path
        from tests.full_models.test_generation import Drawer, fill
        deaths, out = int(sys.argv[1]), Path({str(tmp_path / "out")!r})
        def watch(event, arguments):
            global deaths
            if event in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir") \\
                    and str(out) in str(arguments[0]):
                deaths -= 1
                if deaths == 0:
                    os._exit(9)
        sys.addaudithook(watch)
        fill(out, resume=True)
        print("finished")
    """
    for deaths in (3, 14, 10**9):
        process = start(["-c", textwrap.dedent(code), str(deaths)])
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (0, 9), output
    assert "finished" in output
    assert contents(tmp_path / "out") == contents(reference)


def test_a_set_in_work_is_not_packed(tmp_path):
    out = tmp_path / "out"
    fill(out)
    with locked_folder(out), pytest.raises(BlockingIOError, match="in use"):
        pack(out, tmp_path, "npz", lambda done: None)
