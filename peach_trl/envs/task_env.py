"""What environments whose rows play tasks share: steps and resets without a TensorDict, and EnvBase's around them."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.envs.errors import NotFinite, NotFiniteError
from peach_trl.envs.task_rows import TaskRows


class TaskEnv(EnvBase):
    """A batch of N rows, each of which plays a task; the base of the batched environments.

    Subclasses give :meth:`_advance` and :meth:`restart`, and set ``_task_rows``, ``observe_goal`` and ``not_finite``.
    """

    _task_rows: TaskRows
    observe_goal: bool
    not_finite: NotFinite

    @overload
    def advance(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], NotFiniteError | None]: ...

    @overload
    def advance(
        self, action: Tensor, mask: Tensor | None = None
    ) -> tuple[dict[str, Tensor], NotFiniteError | None]: ...

    def advance(self, action: Any, mask: Tensor | None = None) -> tuple[dict[str, Any], NotFiniteError | None]:
        """One step of all rows without the TensorDict: what :meth:`step` writes under ``"next"``, as plain tensors.

        Args:
            action: ``[N, A]``, within the bounds of the action spec; an array gives arrays, which are not to be written
                into.
            mask: bool ``[N]`` or ``[N, 1]``, the rows to step; ``None`` for all.

        Returns:
            the tensors by key, and what broke, if anything did: these rows are then truncated at their last finite
            observation, with reward 0, and are to be reset.
        """
        if isinstance(action, np.ndarray):
            values, error = self._advance(action, None)
            values.update((key, value.numpy()) for key, value in self._of_tasks().items())
            return values, error
        moves = None if mask is None else mask.reshape(-1).numpy()
        values, error = self._advance(action.detach().numpy(), moves)
        return {**{key: torch.from_numpy(value) for key, value in values.items()}, **self._shown()}, error

    def _advance(
        self, action: np.ndarray, moves: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], NotFiniteError | None]:
        """The same on arrays, without what tasks show; ``moves`` is bool [N], ``None`` for all rows."""
        raise NotImplementedError

    def restart(self, mask: Tensor | None = None, task_id: Tensor | None = None) -> dict[str, Tensor]:
        """A reset without the TensorDict: what :meth:`reset` writes, for all rows, as plain tensors.

        Args:
            mask: bool ``[N]`` or ``[N, 1]``, the rows that start anew; ``None`` for all.
            task_id: int64 ``[N]`` or ``[N, 1]``, the tasks of these rows; ``None`` leaves it to ``task_order``.
        """
        raise NotImplementedError

    def process_state(self) -> dict[str, Any] | None:
        """The rows as they are now, generators included, for an exact resume; ``None`` where that cannot be had."""
        return None

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` gave."""
        raise NotImplementedError

    @property
    def task_id(self) -> Tensor:
        """The task that each row plays now, int64 ``[N]``."""
        return self._task_rows.task_id[:, 0].clone()

    def _shown(self) -> dict[str, Tensor]:
        """What observations hold besides ``"observation"``; what is handed out may be written into."""
        return {key: value.clone() for key, value in self._of_tasks().items()}

    def _of_tasks(self) -> dict[str, Tensor]:
        rows = self._task_rows
        return {"task_id": rows.task_id, "goal": rows.goal} if self.observe_goal else {"task_id": rows.task_id}

    # EnvBase's own methods.

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        values, error = self.advance(tensordict.get("action"), tensordict.get("_step", None))
        result = TensorDict(values, batch_size=self.batch_size, device=self.device)
        if error is None:
            return result
        error.tensordict = result
        return error.raise_or_warn(self.not_finite)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        given = None if tensordict is None else tensordict.get("task_id", None)
        return TensorDict(self.restart(mask, given), batch_size=self.batch_size, device=self.device)
