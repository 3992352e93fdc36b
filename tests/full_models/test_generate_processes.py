"""``full-models generate`` as real processes, alone and together."""

import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import full_models, together

from full_models import cli
from full_models.generation.shard_set import ShardSet

# CI takes a case of each kind, the slow lane the rest.
ci = pytest.mark.ci

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
WEIGHTS = ["--weights", str(GOLDEN / "dit" / "diffusers")]
DECODED = [*WEIGHTS, "--vae", str(GOLDEN / "vae")]
QUICK = ["--steps", "2", "--window", "0", "1", "--batch-size", "2"]
LONG = ["--s2-scale", "0", "--steps", "20", "--batch-size", "2"]


def command(out, *options):
    return ["generate", *DECODED, "--out", str(out), *QUICK, *options]


def finish(process, seconds=240):
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def contents(out):
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def wait_for_shards(out, count, seconds=120):
    until = time.monotonic() + seconds
    while len(list(out.glob("shard-*.json"))) < count:
        assert time.monotonic() < until, "no shards were made"
        time.sleep(0.01)


@ci
def test_one_device_eight_and_two_processes_make_the_same_bytes(tmp_path):
    options = ("--num", "21", "--shard-size", "8", "--labels", "random")
    runs = {
        "one": [full_models(command(tmp_path / "one", *options))],
        "eight": [full_models(command(tmp_path / "eight", *options), devices=8)],
        "two": together(command(tmp_path / "two", *options), processes=2, devices=4),
    }
    for processes in runs.values():
        for process in processes:
            status, output = finish(process)
            assert status == 0, output
    one = contents(tmp_path / "one")
    assert len(one) == 2 + 1 + 2 * 3
    assert contents(tmp_path / "eight") == one
    assert contents(tmp_path / "two") == one


@ci
def test_sample_draws_the_same_on_any_devices(tmp_path):
    options = [*DECODED, *QUICK, "--num", "6", "--labels", "1,2"]
    alone = ["sample", *options, "--out", str(tmp_path / "alone")]
    assert cli.main(alone) == 0
    many = full_models([*alone[:-1], str(tmp_path / "many")], devices=4)
    assert finish(many)[0] == 0
    with np.load(tmp_path / "alone" / "samples.npz") as one:
        with np.load(tmp_path / "many" / "samples.npz") as found:
            for name in ("samples", "arr_0", "labels"):
                np.testing.assert_array_equal(found[name], one[name])


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=ci), pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_others_and_leaves_whole_shards(tmp_path, victim):
    out = tmp_path / "out"
    arguments = ["generate", *WEIGHTS, *LONG, "--num", "6000", "--shard-size", "4"]
    arguments += ["--out", str(out)]
    pair = together(arguments, processes=2, devices=1)
    try:
        wait_for_shards(out, 4)
        pair[victim].kill()
        killed = time.monotonic()
        status, output = finish(pair[1 - victim], seconds=90)
    finally:
        for process in pair:
            process.kill()
            process.wait()
            process.stdout.close()
    assert time.monotonic() - killed < 60
    assert status not in (0, None)
    assert "another process of this run has ended" in output or (
        "another task died" in output
    ), output
    shards = ShardSet.read(out)
    recorded = [s for s in shards.shards() if (out / f"{s.name}.json").exists()]
    assert 4 <= len(recorded) < 1500
    assert all(shards.fault(shard) is None for shard in recorded)


@ci
def test_a_restart_after_a_kill_makes_the_same_bytes(tmp_path):
    """Killed alone, gone on together: fewer shards than would take long."""
    options = ("--num", "40", "--shard-size", "4")
    assert cli.main(command(tmp_path / "whole", *options)) == 0
    out = tmp_path / "out"
    pair = together(command(out, *options), processes=2, devices=1)
    wait_for_shards(out, 2)
    for process in pair:
        process.kill()
        process.wait()
        process.stdout.close()
    again = together([*command(out, *options), "--resume"], processes=2, devices=1)
    ends = [finish(process) for process in again]
    assert [status for status, _ in ends] == [0, 0], ends
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=ci),
    ],
)
def test_a_signal_ends_the_command_and_says_how_to_go_on(tmp_path, number):
    out = tmp_path / "out"
    arguments = ["generate", *WEIGHTS, *LONG, "--num", "6000", "--shard-size", "4"]
    process = full_models([*arguments, "--out", str(out)])
    wait_for_shards(out, 2)
    process.send_signal(number)
    status, output = finish(process)
    assert status == 128 + number
    assert "--resume" in output and f"interrupted by {number.name}" in output
    assert not list(out.glob(".partial-*"))
    shards = ShardSet.read(out)
    made = [s for s in shards.shards() if (out / f"{s.name}.npz").exists()]
    assert all(shards.fault(shard) is None for shard in made)


@ci
def test_sigterm_on_sample_leaves_nothing_behind(tmp_path):
    options = ["--num", "4000", "--steps", "500", "--out", str(tmp_path / "out")]
    process = full_models(["sample", *WEIGHTS, *options])
    until = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 128 + signal.SIGTERM and "interrupted" in output
    assert list(tmp_path.iterdir()) == []


GRID = """
num = 6
steps = 2
batch_size = 2
shard_size = 4
[[rules]]
name = "cfg"
s2_scale = 0.0
cfg_scale = [1.0, 2.0]
[[rules]]
name = "s2"
window = [0.0, 1.0]
cfg_scale = 2.0
"""


@ci
def test_a_sweep_fills_what_is_missing_and_shows_it(tmp_path, capsys):
    grid, out = tmp_path / "grid.toml", tmp_path / "out"
    grid.write_text(GRID)
    run = ["sweep", "--file", str(grid), *DECODED, "--out", str(out)]
    assert cli.main([*run, "--show"]) == 0
    assert capsys.readouterr().out.count("to do") == 3 and not out.exists()
    assert cli.main(run) == 0
    assert capsys.readouterr().out.count("complete") == 3
    names = sorted(p.name for p in out.iterdir())
    assert names == ["cfg_cfg_scale-1", "cfg_cfg_scale-2", "s2"]
    before = contents(out)
    (out / "cfg_cfg_scale-2" / "shard-00001.npz").unlink()
    (out / "cfg_cfg_scale-2" / "shard-00001.json").unlink()
    assert cli.main([*run, "--show"]) == 0
    assert "4 / 6" in capsys.readouterr().out
    assert cli.main(run) == 0
    printed = capsys.readouterr().out
    assert "cfg_cfg_scale-2: 6 samples in 2 shards, 1 to make" in printed
    assert printed.count("to make") == 1
    assert contents(out) == before
    grid.write_text(GRID.replace("steps = 2", "steps = 3"))
    assert cli.main(run) == 2
    assert "draw.steps is 2, expected 3" in capsys.readouterr().err
    assert contents(out) == before


@ci
def test_processes_with_different_options_are_refused(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = ["--coordinator", address, "--num-processes", "2"]
    pair = [
        full_models(
            [
                *command(tmp_path / "o", "--num", "8", "--seed", str(seed)),
                *shared,
                *("--process-id", str(seed)),
            ]
        )
        for seed in (0, 1)
    ]
    for process in pair:
        status, output = finish(process)
        assert status == 2 and "must have the same options" in output, output
    assert not (tmp_path / "o").exists()
