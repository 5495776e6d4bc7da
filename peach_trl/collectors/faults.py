"""What went wrong in a worker process, told to its parent: TorchRL's workers print it, and end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "PEACH_TRL_FAULTS"  # names the folder, in the processes that are started while a Faults listens


class Faults:
    """The exceptions of the processes that were started within :meth:`listening`.

    Examples:
        >>> faults = Faults()
        >>> with faults.listening():  # start workers here; one of them then does this
        ...     with telling():
        ...         raise ValueError("no such task")
        Traceback (most recent call last):
        ...
        ValueError: no such task
        >>> faults.of(os.getpid())
        'ValueError: no such task'
        >>> faults.close()
    """

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="peach_trl_faults_")  # removed at the latest with this
        self.folder = Path(self._place.name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Processes that are started within will tell."""
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self.folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before

    def of(self, pid: int | None) -> str | None:
        """The exception of a process, ``Type: message``; ``None`` where it told none."""
        try:
            return (self.folder / str(pid)).read_text()
        except OSError:
            return None

    def close(self) -> None:
        """Removes what was told."""
        self._place.cleanup()


@contextmanager
def telling() -> Iterator[None]:
    """Tells an exception to whoever listens, and lets it pass."""
    try:
        yield
    except Exception as error:
        if folder := os.environ.get(VARIABLE):
            path = Path(folder, str(os.getpid()))
            if path.parent.is_dir() and not path.exists():  # the first one is the cause of others
                path.write_text(f"{type(error).__name__}: {error}")
        raise


def made_telling(make: Callable[[], Any]) -> Any:
    """What a function makes, whose exceptions are told."""
    with telling():
        return make()
