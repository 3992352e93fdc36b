"""Interruptions that wait until the work at hand is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to end, and ended where it can be continued.

    Attributes:
        signal: the signal that asked for it.
    """

    def __init__(self, signal: signal.Signals):
        super().__init__(f"interrupted by {signal.name}")
        self.signal = signal


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted.

    The work inside looks at ``requested`` wherever it can be continued later, brings
    its files in order and calls ``leave``. A second signal acts at once. Contexts
    within each other act as one, also those of threads within one of the main thread.
    Elsewhere a thread cannot handle signals: nothing is noted, and they do what they
    did.
    """

    _outer: Interruption | None = None

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._shared: Interruption | None = None

    @property
    def requested(self) -> bool:
        """Whether the work is to end."""
        return (self._shared or self).received is not None

    def request(self) -> None:
        """Ask for the end as a SIGTERM would, as when another process received one."""
        (self._shared or self).received = signal.SIGTERM

    def leave(self) -> None:
        """End the work.

        Raises:
            Interrupted: always, if a signal was received.
        """
        received = (self._shared or self).received
        if received is not None:
            raise Interrupted(received)

    def __enter__(self) -> Interruption:
        if Interruption._outer is not None:
            self._shared = Interruption._outer
            return self
        if threading.current_thread() is not threading.main_thread():
            return self
        Interruption._outer = self
        for number in _SIGNALS:
            former = signal.getsignal(number)
            # What is ignored (as under nohup) stays so.
            if former is not signal.SIG_IGN:
                self._former[number] = former
                signal.signal(number, self._note)
        return self

    def __exit__(self, *details: Any) -> None:
        if Interruption._outer is self:
            Interruption._outer = None
            for number, former in self._former.items():
                signal.signal(number, former)
            if details[0] is None:
                self.leave()  # a signal that came too late for the work is not lost

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(signal.Signals(number))
        self.received = signal.Signals(number)
