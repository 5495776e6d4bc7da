"""What a batched environment says when a simulation breaks: where it happened, and what the other rows did."""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import numpy as np
from tensordict import TensorDictBase

NotFinite = Literal["raise", "truncate"]
NOT_FINITE: tuple[str, ...] = get_args(NotFinite)


class NotFiniteError(FloatingPointError):
    """A row's action, observation or reward is not finite; the message names the key, the task ids and the steps.

    No other row is lost: after a broken action nothing was stepped; after a broken simulation ``tensordict`` is the
    result of the step, with the broken rows truncated at their last finite observation, and the environment goes on
    once these rows are reset.

    Args:
        key: what is not finite, such as ``"observation"``.
        rows: the rows of the batch that broke.
        task_ids: the task that each of them played.
        steps: the step of its episode, from 1, at which each broke.
        remedy: what the user can do.
        tensordict: the result of the step; ``None`` if nothing was stepped.

    Attributes:
        batch: of a lock-step rollout, the steps ``[N, t]`` before the one that broke; else ``None``.

    Examples:
        >>> NotFiniteError("observation", [2], [7], [31], "shorten the timestep")
        NotFiniteError('"observation" is not finite in rows [2], task ids [7], at steps [31] of their episodes: shorten
        the timestep')
    """

    def __init__(
        self,
        key: str,
        rows: list[int],
        task_ids: list[int],
        steps: list[int],
        remedy: str,
        tensordict: TensorDictBase | None = None,
    ) -> None:
        super().__init__(
            f'"{key}" is not finite in rows {rows}, task ids {task_ids}, at steps {steps} of their episodes: {remedy}'
        )
        self.batch: TensorDictBase | None = None
        self.key, self.rows, self.task_ids, self.steps, self.tensordict = key, rows, task_ids, steps, tensordict

    def raise_or_warn(self, not_finite: NotFinite) -> TensorDictBase:
        """Raises itself, or with ``"truncate"`` warns and returns ``tensordict``, with which a rollout goes on."""
        if not_finite == "raise" or self.tensordict is None:
            raise self
        warnings.warn(f"{self} (these rows are truncated and go on after a reset)", RuntimeWarning, stacklevel=3)
        return self.tensordict


def broken_rows(values: np.ndarray) -> np.ndarray:
    """The rows of ``values`` [N, D] that hold NaN or infinity, int64 [M]; quick when there is none."""
    if math.isfinite(np.vdot(values, values)):
        return _NONE
    return np.flatnonzero(~np.isfinite(values).all(-1))


_NONE = np.empty(0, dtype=np.int64)
