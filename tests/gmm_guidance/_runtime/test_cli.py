"""Exit statuses and messages of command lines."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from gmm_guidance._runtime.cli import run_command
from gmm_guidance._runtime.interruption import Interrupted


class Lost(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("num must be at least 1, got 0."), 2, "num must be at least 1"),
        (OSError(errno.ENOSPC, "the disk is full"), 2, "tool: the disk is full\n"),
        (FileNotFoundError(2, "No such file", "/x"), 2, "No such file: '/x'"),
        (MemoryError("no room"), 2, "tool: no room"),
        (Lost("another process has ended"), 3, "tool: another process has ended"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT; run it again."),
        (Interrupted(signal.SIGTERM), 143, "interrupted by SIGTERM; run it again."),
    ],
)
def test_errors_become_a_message_and_a_status(capsys, error, status, message):
    def body():
        raise error

    found = run_command("tool", body, resume="run it again", statuses={Lost: 3})
    assert found == status
    assert message in capsys.readouterr().err


def test_a_note_says_how_to_resume(capsys):
    def body():
        error = Interrupted(signal.SIGINT)
        error.add_note("add --resume")
        raise error

    assert run_command("tool", body, resume="run it again") == 130
    assert "interrupted by SIGINT; add --resume.\n" in capsys.readouterr().err


def test_sigterm_runs_the_cleanup_of_the_body(capsys):
    former, cleaned = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def body():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    try:
        assert run_command("tool", body) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)
    assert cleaned and "interrupted by SIGTERM.\n" in capsys.readouterr().err


def test_other_errors_are_defects_and_pass_through():
    with pytest.raises(ZeroDivisionError):
        run_command("tool", lambda: 1 / 0)
    assert run_command("tool", lambda: None) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    "streams",
    [
        "> /dev/full",
        pytest.param("> /dev/full 2> /dev/full", marks=pytest.mark.ci),
    ],
)
def test_a_full_stream_does_not_end_a_run(tmp_path, streams):
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "import gmm_guidance._runtime.cli as cli\n"
        "from gmm_guidance._runtime.progress import Reporter\n"
        "def body():\n"
        "    with Reporter() as reporter:\n"
        "        [reporter.say('x' * 999) for _ in range(99)]\n"
        "        print('y' * 999, file=sys.stderr)\n"
        "    print('z' * 99_999)\n"
        "    Path(sys.argv[1]).write_text('done')\n"
        "sys.exit(cli.run_command('tool', body))\n"
    )
    made = tmp_path / "made"
    command = f"{sys.executable} {script} {made} {streams}"
    ended = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0 and made.read_text() == "done"
    if "2>" not in streams:
        assert "standard output could not be written (No space left" in ended.stderr
        assert "Exception ignored" not in ended.stderr
    piped = f"set -o pipefail; {sys.executable} {script} {made}2 | head -c 1"
    ended = subprocess.run(
        ["bash", "-c", piped], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert ended.returncode == 0 and b"rror" not in ended.stderr
    assert (tmp_path / "made2").exists()
