"""Whether a recorded batch goes on where the one before stopped: what follows in time is joined, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

_META = ("meta_episode", "trajectory")


class Continuity:
    """Compares batches [N, T] with each other: of each row it keeps the last step.

    Examples:
        >>> from tensordict import TensorDict
        >>> def steps(first, last):
        ...     s = torch.arange(first, last + 1.0).view(1, -1, 1)
        ...     after = {"observation": s + 1, "done": s > 8}
        ...     return TensorDict({"observation": s, ("hierarchy", "start"): s == 0, "next": after}, s.shape[:2])
        >>> continuity = Continuity()
        >>> continuity.check(steps(0, 2)), continuity.check(steps(3, 4))
        (False, False)
        >>> continuity.check(steps(6, 7))
        Traceback (most recent call last):
        ...
        ValueError: row 0 of 1 begins where the step before did not lead: a batch is missing, or rows are others; ...
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the batch before."""
        self._last: dict[str, Tensor] | None = None

    def check(self, batch: TensorDictBase) -> bool:
        """Takes in a recorded batch.

        Returns:
            whether its rows start anew, so that they number their meta-episodes from 0 again.

        Raises:
            ValueError: if its rows neither start anew nor go on where they stopped, and if a meta-episode would be
                joined of several tasks or with a trajectory missing; nothing is taken in then.
        """
        if not batch.shape[1]:
            return False
        columns, anew = _columns(batch), False
        if self._last is not None:
            self._check_steps(batch, self._last)
            anew = _starts_anew(batch["hierarchy", "start"][:, 0], columns, self._last)
            if not anew:
                before = {name: self._last[name] for name in columns.keys() & self._last.keys()}
                columns |= {name: torch.cat([value.unsqueeze(1), columns[name]], 1) for name, value in before.items()}
        _check_meta_episodes(columns)
        columns |= {"done": batch["next", "done"], "reached": batch["next", "observation"]}
        self._last = {name: value[:, -1].clone() for name, value in columns.items()}
        return anew

    def _check_steps(self, batch: TensorDictBase, last: Mapping[str, Tensor]) -> None:
        goes_on = ~batch["hierarchy", "start"][:, 0].squeeze(-1)
        if not goes_on.any():
            return
        if len(last["done"]) != len(batch):
            raise ValueError(f"{len(batch)} rows go on, and there were {len(last['done'])}; {_REMEDY}")
        here = torch.isclose(last["reached"], batch["observation"][:, 0], rtol=0, atol=0, equal_nan=True).all(-1)
        _refuse(
            goes_on & (last["done"].squeeze(-1) | ~here),
            "begins where the step before did not lead: a batch is missing, or rows are others",
        )
        task = batch.get("task_id", None)
        if task is not None and "task_id" in last:
            _refuse(goes_on & (task[:, 0] != last["task_id"]).squeeze(-1), "goes on with another task_id")

    def state_dict(self) -> dict[str, Any]:
        """The last step of each row."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._last = state_dict["last"]


_REMEDY = "call reset() where collection starts anew"


def _columns(batch: TensorDictBase) -> dict[str, Tensor]:
    """What tells meta-episodes apart, int64 [N, T, 1] each."""
    found = {name: batch.get(("context", name), None) for name in _META} | {"task_id": batch.get("task_id", None)}
    return {name: value for name, value in found.items() if value is not None}


def _starts_anew(start: Tensor, columns: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> bool:
    """Whether an episode that starts, bool [N, 1], is none that follows: its numbers do not go up."""
    if len(last["done"]) != len(start):
        return True
    if not columns.keys() & last.keys() >= set(_META):
        return False
    number, trajectory = (columns[name][:, 0] - last[name] for name in _META)
    return bool((start & ((number < 0) | (number == 0) & (trajectory <= 0))).any())


def _check_meta_episodes(columns: Mapping[str, Tensor]) -> None:
    if not columns.keys() >= set(_META):
        return
    steps = {name: value[:, 1:] - value[:, :-1] for name, value in columns.items()}
    within = steps["meta_episode"] == 0
    _refuse((within & (steps["trajectory"] > 1)).flatten(1).any(1), "has a meta-episode with a trajectory missing")
    if "task_id" in steps:
        _refuse((within & (steps["task_id"] != 0)).flatten(1).any(1), "has a meta-episode of several tasks")


def _refuse(rows: Tensor, why: str) -> None:
    if rows.any():
        raise ValueError(f"row {int(rows.nonzero()[0, 0])} of {len(rows)} {why}; {_REMEDY}")
