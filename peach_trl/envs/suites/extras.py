"""The optional packages that the task suites need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require_extra(module: str, extra: str, note: str = "") -> ModuleType:
    """Imports ``module``, or says how to install it.

    Args:
        module: the module to import.
        extra: the extra of this library that brings it.
        note: what else to know about the installation.

    Raises:
        ImportError: if it is missing or fails to import.

    Examples:
        >>> require_extra("no_such_module", "nothing")
        Traceback (most recent call last):
        ...
        ImportError: no_such_module cannot be imported: pip install "peach_trl[nothing]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f'{module} cannot be imported: pip install "peach_trl[{extra}]"'
        raise ImportError(f"{hint}{'; ' if note else ''}{note}") from error
