"""Spaces of goals: which part of an observation a goal speaks about, and when a goal counts as achieved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Values = TypeVar("Values", Tensor, np.ndarray)


class GoalSpace:
    """A box of goals over some entries of an observation, with a test of achievement.

    ``"box"`` calls a goal achieved when every entry is within its own tolerance, as in Hierarchical Actor-Critic
    (Levy et al. 2019, arXiv 1712.00948); ``"euclidean"`` when the distance is within one radius.

    Args:
        indices: the entries of the observation that make up a goal, G of them, each >= 0 and none twice.
        low: smallest goal, one number or G of them, in the units of the observation.
        high: largest goal, likewise; above ``low`` everywhere.
        tolerance: for ``"box"`` one number or G of them, for ``"euclidean"`` one radius; above 0.
        metric: ``"box"`` or ``"euclidean"``.
        places: how many of the entries, the first ones, say where something is, and not how fast it moves, say;
            ``None`` for all. Exploration measures distances by them.

    Attributes:
        dim: number of entries of a goal, G.
        low, high, half_range: float32 ``[G]``; ``half_range`` is half of ``high - low``.
        tolerance: float32, ``[G]`` for ``"box"`` and ``[]`` for ``"euclidean"``.

    Raises:
        ValueError: for arguments that do not fit together; the message names the value and the remedy.

    Examples:
        >>> space = GoalSpace([0, 1], low=-10.0, high=10.0, tolerance=0.5, metric="euclidean")
        >>> observation = torch.tensor([[3.0, 4.0, 0.1, 0.0]])
        >>> space.project(observation)
        tensor([[3., 4.]])
        >>> space.achieved(observation, torch.tensor([[3.0, 4.4]]))
        tensor([True])
        >>> space.clip(torch.tensor([12.0, -3.0]))
        tensor([10., -3.])
    """

    def __init__(
        self,
        indices: Sequence[int],
        low: float | Sequence[float] | Tensor,
        high: float | Sequence[float] | Tensor,
        tolerance: float | Sequence[float] | Tensor,
        metric: Literal["box", "euclidean"] = "box",
        places: int | None = None,
    ) -> None:
        self.indices = tuple(int(i) for i in indices)
        if not self.indices or min(self.indices) < 0 or len(set(self.indices)) < len(self.indices):
            raise ValueError(f"indices = {self.indices}: give at least one index, each >= 0 and none twice")
        if metric not in ("box", "euclidean"):
            raise ValueError(f"metric = {metric!r}: must be 'box' or 'euclidean'")
        self.metric: Literal["box", "euclidean"] = metric
        self.dim = len(self.indices)
        self.places = self.dim if places is None else places
        if not 1 <= self.places <= self.dim:
            raise ValueError(f"places = {places}: must be 1 to {self.dim}, entries of a goal; None for all")
        self.low = self._vector("low", low)
        self.high = self._vector("high", high)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"low = {self.low.tolist()}, high = {self.high.tolist()}: raise high above low everywhere")
        self.half_range = (self.high - self.low) / 2
        self.tolerance = self._tolerance(tolerance)
        first, self._last = self.indices[0], max(self.indices)
        contiguous = self.indices == tuple(range(first, first + self.dim))
        self._select: slice | list[int] = slice(first, first + self.dim) if contiguous else list(self.indices)

    def project(self, observation: Values) -> Values:
        """The part of ``observation`` ``[..., D]`` that goals speak about, ``[..., G]`` (a view where possible)."""
        if observation.shape[-1] <= self._last:
            raise ValueError(
                f"observation of shape {tuple(observation.shape)} has no entry {self._last}, which this goal space"
                f" reads (indices {self.indices}): pass whole observations, not goals"
            )
        return cast(Values, observation[..., self._select])

    def achieved(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Whether ``observation`` ``[..., D]`` achieves ``goal`` ``[..., G]``: bool ``[...]``."""
        if goal.shape[-1] != self.dim:
            raise ValueError(f"goal of shape {tuple(goal.shape)}: this goal space has {self.dim} numbers")
        difference = self.project(observation) - goal
        if self.metric == "euclidean":
            return torch.linalg.vector_norm(difference, dim=-1) <= self.tolerance
        return (difference.abs() <= self.tolerance).all(-1)

    def within(self, tolerance: float | Sequence[float] | Tensor) -> GoalSpace:
        """The same space with another tolerance."""
        return GoalSpace(self.indices, self.low, self.high, tolerance, self.metric, places=self.places)

    def clip(self, goal: Tensor) -> Tensor:
        """``goal`` ``[..., G]`` moved to the nearest point of the box."""
        return torch.clamp(goal, self.low, self.high)

    def __repr__(self) -> str:
        return (
            f"GoalSpace(indices={list(self.indices)}, low={self.low.tolist()}, high={self.high.tolist()}, "
            f"tolerance={self.tolerance.tolist()}, metric={self.metric!r})"
        )

    def _vector(self, name: str, value: float | Sequence[float] | Tensor) -> Tensor:
        tensor = torch.as_tensor(value, dtype=torch.float32)
        if tensor.shape not in (torch.Size([]), torch.Size([self.dim])) or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} = {value!r}: give one finite number, or {self.dim}, one per index")
        return tensor.expand(self.dim).clone()

    def _tolerance(self, value: float | Sequence[float] | Tensor) -> Tensor:
        if self.metric == "box":
            tolerance = self._vector("tolerance", value)
        else:
            tolerance = torch.as_tensor(value, dtype=torch.float32).clone()
            if tolerance.shape != torch.Size([]) or not bool(tolerance.isfinite()):
                raise ValueError(f"tolerance = {value!r}: the euclidean metric takes one radius, a finite number")
        if not bool((tolerance > 0).all()):
            raise ValueError(f"tolerance = {value!r}: must be above 0")
        return tolerance
