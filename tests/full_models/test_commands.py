"""The command full-models with a tiny network: what it writes, repeats and refuses."""

import dataclasses
import errno
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from oracles.dits import TINY, random_dit
from PIL import Image
from support.commands import run_cli

import gmm_guidance as gg
from full_models import cli, export_weights, load_autoencoder
from full_models.generation import images, sampler
from full_models.generation.sampler import MeshSampler, check_memory

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PIXELS = dataclasses.replace(TINY, in_channels=3)
SAMPLE = ("--labels", "1,2", "--num", "5", "--steps", "4", "--batch-size", "2")
SAMPLE += ("--window", "0", "1")  # one segment, which compiles in a third of the time


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dit"
    return export_weights(random_dit(PIXELS), path, "diffusers")


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    arguments = ["sample", "--weights", weights, "--out", out, *SAMPLE]
    assert cli.main([str(a) for a in arguments]) == 0
    return out


def test_sample_writes_everything(finished):
    with np.load(finished / "samples.npz") as file:
        found = dict(file)
    assert found["arr_0"].shape == (5, 8, 8, 3) and found["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(found["labels"], [1, 2, 1, 2, 1])
    np.testing.assert_array_equal(found["arr_0"], images.to_uint8(found["samples"]))
    singles = sorted(p.name for p in (finished / "images").iterdir())
    assert singles[:2] == ["000000-1.png", "000001-2.png"] and len(singles) == 5
    first = np.asarray(Image.open(finished / "images" / "000000-1.png"))
    np.testing.assert_array_equal(first, found["arr_0"][0])
    grid = np.asarray(Image.open(finished / "grid.png"))
    np.testing.assert_array_equal(grid[:64:8, :64:8], first)  # enlarged
    assert not list(finished.parent.glob(".*"))  # nothing temporary is left


def test_record_says_what_repeats_the_run(finished):
    record = json.loads((finished / "run.json").read_text())
    described = record["run"]
    assert described["draw"]["seed"] == 0 and described["guidance"]["s2_scale"] == 0.25
    assert len(described["model"]["weights_sha256"]) == 64
    # 4 steps of 2 passes, and a shared weak one.
    rule = gg.S2Guidance(4.0, window=None)
    cost = gg.expected_cost(rule, gg.DDPMSteps(4), 4, solver="euler").shared
    assert record["passes_per_image"] == pytest.approx(cost)
    assert record["images_per_second"] > 0


@pytest.mark.ci
def test_latents_are_decoded_by_the_vae(capsys, tmp_path):
    out = tmp_path / "out"
    status, _, error = run_cli(
        capsys,
        "sample",
        "--weights",
        GOLDEN / "dit" / "diffusers",
        "--vae",
        GOLDEN / "vae",
        "--out",
        out,
        *("--labels", "1,2", "--num", "4", "--steps", "4"),
    )
    assert status == 0, error
    with np.load(out / "samples.npz") as file:
        found = dict(file)
    assert found["samples"].shape == (4, 8, 8, 4)
    assert found["samples"].dtype == np.float32
    assert found["arr_0"].shape == (4, 16, 16, 3) and found["arr_0"].dtype == np.uint8
    assert np.ptp(found["arr_0"]) > 50
    decoder = load_autoencoder(GOLDEN / "vae")
    expected = images.to_uint8(decoder.decode(found["samples"])).astype(int)
    # Batches of other sizes may round a value at the edge of two bytes otherwise.
    difference = np.abs(found["arr_0"].astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
    first = np.asarray(Image.open(out / "images" / "000000-1.png"))
    np.testing.assert_array_equal(first, found["arr_0"][0])


@pytest.mark.ci
def test_same_run_in_other_batches_gives_the_same(capsys, weights, finished, tmp_path):
    out = tmp_path / "again"
    options = [*SAMPLE, "--batch-size", "5"]
    status, text, _ = run_cli(
        capsys, "sample", "--weights", weights, "--out", out, *options
    )
    assert status == 0 and str(out / "grid.png") in text and "samples/s" in text
    with np.load(finished / "samples.npz") as a, np.load(out / "samples.npz") as b:
        np.testing.assert_allclose(a["samples"], b["samples"], rtol=1e-4, atol=1e-4)


def test_occupied_directories_are_refused(capsys, weights, finished, tmp_path):
    common = ("sample", "--weights", weights, *SAMPLE, "--out")
    status, _, error = run_cli(capsys, *common, finished)
    assert status == 2 and "already holds this run" in error
    status, _, error = run_cli(capsys, *common, finished, "--seed", "3")
    assert status == 2 and "another run: draw.seed is 0, expected 3" in error
    (tmp_path / "notes.txt").write_text("mine")
    status, _, error = run_cli(capsys, *common, tmp_path)
    assert status == 2 and "no run of full-models" in error
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "options, message",
    [
        (("--labels", "5"), "0..4 for this model, got 5"),
        (("--labels", "otter"), "names are known for ImageNet"),
        (("--num-dropped", "4"), "exceeds the 3 unprotected blocks"),
        (("--num", "0"), "num must be at least 1"),
        (("--guided-channels", "4"), "guided_channels must be in 1..3"),
        (("--model", "DiT-XL/2"), "depth is 4, expected 28"),
        (("--vae", "/nowhere"), "no such file or folder: /nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_options_leave_nothing(capsys, weights, tmp_path, options, message):
    out = tmp_path / "out"
    status, _, error = run_cli(
        capsys, "sample", "--weights", weights, "--out", out, *SAMPLE, *options
    )
    assert status == 2 and message in error, error
    assert not list(tmp_path.iterdir())


def test_unwritable_output(capsys, weights, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, error = run_cli(
        capsys, "sample", "--weights", weights, "--out", tmp_path / "file" / "out"
    )
    assert status == 2 and "must be writable" in error


def test_full_disk_leaves_nothing(capsys, weights, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    out = tmp_path / "out"
    status, _, error = run_cli(
        capsys, "sample", "--weights", weights, "--out", out, *SAMPLE
    )
    assert status == 2 and "is full; nothing was left there" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_compare_draws_the_same_seeds_under_each_rule(capsys, weights, tmp_path):
    out = tmp_path / "out"
    options = ("--labels", "1,2", "--num", "2", "--steps", "4")
    options += ("--rules", "unguided,cfg,s2,pag")
    status, text, _ = run_cli(
        capsys, "compare", "--weights", weights, "--out", out, *options
    )
    assert status == 0 and "no guidance" in text
    with np.load(out / "samples.npz") as file:
        found = dict(file)
    names = {"unguided", "cfg", "s2", "pag"}
    assert set(found) == {"labels", *names, *(f"{n}_images" for n in names)}
    assert (found["cfg"] != found["s2"]).any()
    assert np.asarray(Image.open(out / "compare.png")).shape[1] > 300
    rules = json.loads((out / "run.json").read_text())["rules"]
    assert [r["passes_per_image"] for r in rules.values()][:2] == [4, 8]
    assert (found["cfg"] != found["pag"]).any()


def test_an_unknown_rule_or_block_is_refused_at_once(capsys, weights, tmp_path):
    for words, message in {
        ("pga",): "unknown rule 'pga'",
        ("pag", "blocks=4"): "0..3 for a model of 4 blocks",
    }.items():
        status, _, error = run_cli(
            capsys,
            *("sample", "--weights", weights, "--out", tmp_path / "out", *SAMPLE),
            *("--rule", *words),
        )
        assert status == 2 and message in error


@pytest.mark.ci
def test_calibrate_ranks_features(capsys, weights, tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    samples = rng.normal(size=(40, 8, 8, 3)).astype(np.float32)
    np.savez(data, samples=samples, labels=rng.integers(0, 5, 40))
    out = tmp_path / "out"
    options = ("--blocks", "1", "2", "--num-samples", "240", "--num-levels", "2")
    options += ("--cfg-scale", "1.5")
    status, text, error = run_cli(
        capsys,
        "calibrate",
        "--weights",
        weights,
        "--data",
        data,
        "--out",
        out,
        *options,
    )
    assert status == 0, error
    record = json.loads((out / "run.json").read_text())
    ranking = record["ranking"]
    assert {r["feature"] for r in ranking} == {"cfg", "block 1", "block 2"}
    found = gg.Calibration.load(out / "calibration.json")
    assert record["squared_error"] == pytest.approx(found.total_error())
    for entry, (_, removed, error_of_it) in zip(ranking, found.ranking(), strict=True):
        assert entry["removed"] == pytest.approx(removed)
        total = found.total_error()
        assert entry["fraction"] == pytest.approx(removed / total)
        assert entry["fraction_standard_error"] == pytest.approx(error_of_it / total)
    assert "% of the squared error" in text
    assert len(found.block_costs) == 4 and (out / "calibration.png").exists()
    rows = [r for r in record["profile"] if r["correction"] == "mean of blocks"]
    weights_of_mean = [r["value"] for r in rows if r["quantity"] == "best_weight"]
    # Least squares of x0 - D_cfg on the mean correction, from the saved products.
    profile = found.profile()
    cfg = 4 + profile.directions.index("cfg")
    for value, p in zip(weights_of_mean, profile.products.mean(1), strict=True):
        assert value == pytest.approx((p[2, 3] - 0.5 * p[2, cfg]) / p[2, 2], rel=1e-4)
    assert {"output_fraction", "cfg_fraction"} < {r["quantity"] for r in rows}
    assert "ω of least error on CFG of scale 1.5" in text
    assert (out / "profile.png").exists()
    data.write_bytes(data.read_bytes()[:-100])
    arguments = ("calibrate", "--weights", weights, "--data", data)
    status, _, error = run_cli(capsys, *arguments, "--out", out / "2")
    assert status == 2 and "is damaged" in error
    np.savez(data, samples=samples[:, :4])
    status, _, error = run_cli(
        capsys, "calibrate", "--weights", weights, "--data", data, "--out", out / "2"
    )
    assert status == 2 and '"labels", found samples' in error


@pytest.mark.ci
def test_batches_are_filled_up_and_cut():
    network = random_dit()
    labels = np.array([0, 1, 2, 3, 4])
    drawer = MeshSampler(
        network,
        gg.MeshConfig(1).build(),
        key=jax.random.key(0),
        guidance=gg.Unguided(),
        schedule=gg.DDPMSteps(2),
        solver="euler",
        batch_size=3,
    )
    assert drawer.samples_at_once == 3
    batches = [
        drawer.draw(np.arange(start, stop), labels[start:stop])
        for start, stop in ((0, 3), (3, 5), (5, 5))
    ]
    assert [len(b.samples) for b in batches] == [3, 2, 0]
    assert all(b.images is None for b in batches)
    found = np.concatenate([b.samples for b in batches])
    whole = gg.guided_sample(
        jax.random.key(0),
        network,
        labels,
        num_samples=5,
        schedule=gg.DDPMSteps(2),
        solver="euler",
    )
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_batches_that_do_not_fit_are_refused():
    needed = SimpleNamespace(temp_size_in_bytes=700, output_size_in_bytes=100)
    check_memory(needed, 8, available=1000)
    check_memory(None, 8, available=0)  # not every device tells
    with pytest.raises(MemoryError, match=r"at most 4 \(--batch-size\)"):
        check_memory(needed, 8, available=500)
    with pytest.raises(MemoryError, match="not even one sample fits"):
        check_memory(needed, 8, available=100)


def test_a_batch_that_does_not_fit_leaves_nothing(
    capsys, weights, tmp_path, monkeypatch
):
    """What the compiler says of the real program, on a machine of a megabyte."""
    monkeypatch.setattr(sampler, "_free_host_bytes", lambda: 2**20)
    options = ("--batch-size", "64", "--num", "64", "--steps", "4", "--s2-scale", "0")
    for command in ("sample", "generate"):
        out = tmp_path / command
        status, _, error = run_cli(
            capsys, command, "--weights", weights, "--out", out, *options
        )
        assert status == 2 and "a batch of 64 needs" in error, error
        assert "use a batch size of at most" in error
    assert not list(tmp_path.iterdir())


def test_places_that_are_computed_for_nothing_are_said():
    assert sampler.unused_places((4, 8), 4) == ""
    assert "29 of 80 places in batches of 16" in sampler.unused_places((50, 1), 16)


@pytest.mark.ci
def test_a_batch_is_no_larger_than_a_shard_or_the_set(capsys, weights, tmp_path):
    common = ("generate", "--weights", weights, "--steps", "2", "--s2-scale", "0")
    for options, size, note in (
        (("--num", "3"), 3, ""),
        (("--num", "5", "--shard-size", "2"), 2, "1 of 6 places in batches of 2"),
    ):
        out = tmp_path / str(size)
        status, text, error = run_cli(capsys, *common, *options, "--out", out)
        assert status == 0, error
        plan = json.loads((out / "plan.json").read_text())
        assert plan["run"]["execution"]["batch_size"] == size
        assert (note in text) if note else "computed for nothing" not in text


def test_grid_keeps_a_label_in_a_column():
    assert images.grid_columns(16, 2) == 4
    assert images.grid_columns(16, 8) == 8
    assert images.grid_columns(16, 3) == 3
    assert images.grid_columns(8, 8) == 3  # one row of eight would be too long
    assert images.grid_columns(4, 1000) == 2
    grid = images.make_grid(np.zeros((3, 40, 50, 1), np.uint8), 2)
    assert grid.shape == (82, 102, 1) and grid[40:42].min() == 255
