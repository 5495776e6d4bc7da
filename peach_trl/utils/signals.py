"""SIGTERM as an exception, so that a run that is told to stop saves what it has, and shuts its workers down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """The process was told to stop by a signal; its exit code is 128 and the signal's number, as a shell has it.

    Args:
        number: of the signal.

    Examples:
        >>> Terminated(15).code, str(Terminated(15))
        (143, 'stopped by SIGTERM')
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` here, once; outside of the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # what follows is not to be interrupted
        raise Terminated(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
