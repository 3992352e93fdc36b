"""What both command lines share: messages, exit statuses and signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_EXPECTED: tuple[type[Exception], ...] = (
    ValueError,
    OSError,
    MemoryError,
    ImportError,
)


def run_command(
    prog: str,
    body: Callable[[], Any],
    *,
    resume: str = "",
    statuses: Mapping[type[Exception], int] | None = None,
) -> int:
    """Run the body of a command; print expected errors as one message, no traceback.

    SIGTERM ends the body like Ctrl-C, so that its contexts remove temporary files. A
    note added to a ``KeyboardInterrupt`` (``error.add_note``) says how to resume. What
    is printed is a courtesy: a stream that cannot be written, such as a log on a full
    disk or a closed pipe, is dropped, and the body is carried on.

    Args:
        prog: name of the command line, which starts each message.
        body: parses the arguments and does the work.
        resume: how to resume after an interruption without a note.
        statuses: exit status of further exceptions.

    Returns:
        The exit status: 0; 2 after a ``ValueError``, ``OSError``, ``MemoryError`` or
        ``ImportError``; that of ``statuses``; 128 + n after signal n.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file that cannot show a character shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with _dropping_streams_that_fail(prog):
        return _run(prog, body, resume, statuses or {})


def _run(
    prog: str,
    body: Callable[[], Any],
    resume: str,
    statuses: Mapping[type[Exception], int],
) -> int:
    known = dict.fromkeys(_EXPECTED, 2) | dict(statuses)
    try:
        with _terminated_like_interrupted():
            body()
    except tuple(known) as error:
        print(f"{prog}: {_message(error)}", file=sys.stderr)
        return next(status for kind, status in known.items() if isinstance(error, kind))
    except KeyboardInterrupt as error:
        number = getattr(error, "signal", None) or next(iter(error.args), signal.SIGINT)
        how = " ".join(getattr(error, "__notes__", [])) or resume
        text = f"interrupted by {signal.Signals(number).name}" + (how and f"; {how}")
        print(f"\n{prog}: {text}.", file=sys.stderr)
        return 128 + number
    return 0


class _Courtesy:
    """A stream that is dropped once it cannot be written."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        if self.failed is not None:
            return
        try:
            action()
        except OSError as error:
            self.failed = error
            # What is still in its buffer is written when Python ends.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextlib.contextmanager
def _dropping_streams_that_fail(prog: str) -> Iterator[None]:
    names = ("stdout", "stderr")
    streams = {name: getattr(sys, name) for name in names}
    wrapped = {n: _Courtesy(s) for n, s in streams.items() if s is not None}
    for name, stream in wrapped.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for stream in wrapped.values():
            stream.flush()
        failed = wrapped["stdout"].failed if "stdout" in wrapped else None
        # A closed pipe is its reader's choice (head, less).
        if failed is not None and not isinstance(failed, BrokenPipeError):
            print(
                f"{prog}: standard output could not be written ({failed.strerror}); "
                f"what it should have shown is lost, files are not.",
                file=sys.stderr,
            )
        for name, stream in streams.items():
            setattr(sys, name, stream)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Raise ``KeyboardInterrupt(SIGTERM)`` at a SIGTERM nobody else handles."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    handled = False
    with contextlib.suppress(ValueError):  # outside the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, interrupt)
            handled = True
    try:
        yield
    finally:
        if handled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _message(error: Exception) -> str:
    """The message, without the error number that ``OSError`` puts in front of ours."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)
