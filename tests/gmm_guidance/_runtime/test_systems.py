"""Terminals, notebooks, paths and Windows, by emulation of what they do."""

import errno
import fcntl
import io
import os
import sys
import types

import jax
import numpy as np
import pytest
from rich.console import Console
from rich.errors import LiveError

from gmm_guidance._runtime.checks import as_path, key_of_seed
from gmm_guidance._runtime.cli import run_command
from gmm_guidance._runtime.files import locked_folder, write_text
from gmm_guidance._runtime.progress import Reporter


def test_windows_flushes_only_what_may_be_written(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "S²")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == "S²".encode()


def test_nothing_stays_behind_if_the_disk_is_full(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "a")
    assert not list(tmp_path.iterdir())


def test_windows_neither_writes_nor_removes_a_locked_file(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "used by another process")

    monkeypatch.setattr("gmm_guidance._runtime.files._without_links", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with locked_folder(tmp_path):
        pass
    with locked_folder(tmp_path):  # the file that stays is no lock
        pass


@pytest.mark.parametrize("encoding", ["gbk", "cp932", "cp1251", "ascii"])
def test_terminals_of_other_encodings_show_a_question_mark(encoding, monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command("test", lambda: print("S² • 128")) == 0
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.startswith("S") and text.endswith("128\n")


def test_home_folders_and_brackets(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_text("~/models/run[cfg].txt", "a") == tmp_path / "models/run[cfg].txt"
    for wrong, kind in (("", ValueError), (3, TypeError)):
        with pytest.raises(kind, match="path must"):
            as_path(wrong)


def test_all_bits_of_a_seed_count():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1, np.uint64(2**64 - 2)]
    assert (
        len({tuple(jax.random.key_data(key_of_seed(s)).tolist()) for s in seeds}) == 7
    )
    assert key_of_seed(7) == jax.random.key(7)
    for wrong, kind in ((-1, ValueError), (2**64, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match="seed must be"):
            key_of_seed(wrong)


def test_a_notebook_shows_one_line_that_changes(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("gmm_guidance._runtime.progress._SECONDS_BETWEEN_UPDATES", -1.0)
    console = Console(file=io.StringIO(), force_jupyter=True)
    with Reporter(console) as reporter, reporter.task("training", 4) as task:
        task.move_to(2, "loss 0.5")
        task.move_to(4)
    assert console.file.getvalue() == ""
    assert [line.count("█") for line in shown] == [15, 30]
    assert "training: 2/4" in shown[0] and "loss 0.5" in shown[0]


def test_within_a_display_of_the_caller_there_are_lines(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    reporter = Reporter(console)

    def nested():
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(reporter._progress, "start", nested)
    monkeypatch.setattr("gmm_guidance._runtime.progress._SECONDS_BETWEEN_LINES", -1.0)
    with reporter, reporter.task("training", 4) as task:
        task.move_to(2)
    assert "training: 2/4" in console.file.getvalue()
