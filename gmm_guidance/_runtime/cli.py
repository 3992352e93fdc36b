"""What both command lines share: messages, exit statuses and signals."""

from __future__ import annotations

import contextlib
import io
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
    note added to a ``KeyboardInterrupt`` (``error.add_note``) says how to resume.

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
    known = dict.fromkeys(_EXPECTED, 2) | dict(statuses or {})
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
