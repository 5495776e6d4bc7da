"""SIGTERM as an exception, so that a run that is told to stop saves what it has, and shuts its workers down."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


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


class Stopping:
    """SIGTERM raises :class:`Terminated` here, and SIGINT ``KeyboardInterrupt``, each once; a context manager.

    Raised within torch's compiled code, they come out as a ``RuntimeError``; on the way out of the context, what it was
    is raised instead. Outside of the main thread nothing is changed.

    Attributes:
        stopped: what was raised, if a signal came.

    Examples:
        >>> import os
        >>> try:
        ...     with Stopping():
        ...         try:
        ...             os.kill(os.getpid(), signal.SIGTERM)
        ...         except BaseException as error:
        ...             raise RuntimeError("in compiled code") from error
        ... except Terminated as error:
        ...     print(error)
        stopped by SIGTERM
    """

    def __init__(self) -> None:
        self.stopped: BaseException | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)  # what follows is not to be interrupted
        self.stopped = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
        raise self.stopped

    def cause(self, error: BaseException | None) -> BaseException | None:
        """What an error was at first: the signal, if one came."""
        return error if error is None or self.stopped is None else self.stopped

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if (cause := self.cause(error)) is not None and cause is not error:
            raise cause from error
