"""Reference policies beside a learning result; none yet, they come with the next commits."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def has_references(env: Any) -> bool:
    """Whether there are any for the tasks of ``env``."""
    return False


def references(env: Any, **options: Any) -> dict[str, Tensor]:
    """Returns by trajectory number of each."""
    return {}
