"""The goals that may still be: where goals may lie, and the candidates there that agree with what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from peach_trl.envs.tasks import TaskLibrary

REMEDY = (
    "references need two actions and goals (x, y) on a circle about the origin, or a family that they know; ask "
    "has_references first"
)
_NOISE = 1e-5  # of rewards


class Walk(NamedTuple):
    """Ways along all the goals, one of each of R rows; a place on a way is a number that grows along it.

    See :class:`~peach_trl.references.places.Search`.
    """

    order: Tensor  # [R, C], where on the way it comes by each candidate
    leads: Tensor  # [L] or [R, L], from 0: how far ahead of the first possible candidate a subgoal may lie
    margin: Tensor  # [R, 1], how near to a goal a subgoal's way has to come, metres
    places: Callable[[Tensor], Tensor]  # from where on the way [R, L] to the plane [R, L, 2]


class Region(Protocol):
    """Where the goals of an environment may lie, and how to look for them there: an arc or a square."""

    @property
    def tolerance(self) -> float:
        """Distance from a goal within which there are rewards, metres."""
        ...

    @property
    def candidates(self) -> Tensor:
        """A grid [C, 2] that stands for all goals, metres."""
        ...

    @property
    def slack(self) -> float:
        """A goal lies this near to a candidate, metres."""
        ...

    @property
    def stays(self) -> Tensor:
        """Places [S, 2], metres, one of which is the best to stay at where nothing is known."""
        ...

    @property
    def walks(self) -> Tensor:
        """The parameters of ways [S, W] that come by all candidates, one of which is the best."""
        ...

    def walk(self, choices: Tensor) -> Walk:
        """The ways of some of these parameters, [R, W]."""
        ...


class Candidates:
    """The goals that agree with all rewards so far: the exact posterior of a uniform prior, on a grid, for R rows.

    Args:
        region: where goals may lie.
        samples: distance from the goal and reward there, [M, 2]; what lies between two samples may be had there.
        rows: R.

    Attributes:
        goals: [C, 2], the candidates, in metres.
        possible: bool [R, C].
        found: bool [R], whether there was a reward.

    Examples:
        >>> from peach_trl.references import Arc
        >>> samples = torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
        >>> candidates = Candidates(Arc(radius=1.0, start=0.0, length=torch.pi, tolerance=0.2), samples, rows=1)
        >>> candidates.see(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))
        >>> left = candidates.goals[candidates.possible[0]]
        >>> bool((left - torch.tensor([1.0, 0.0])).norm(dim=-1).min() > 0.19), candidates.found
        (True, tensor([False]))
    """

    def __init__(self, region: Region, samples: Tensor, rows: int) -> None:
        self.goals = region.candidates
        self.possible = torch.ones(rows, len(self.goals), dtype=torch.bool)
        self.found = torch.zeros(rows, dtype=torch.bool)
        rewarded = samples[samples[:, 1] > 0]
        limits = torch.tensor([[-torch.inf, torch.inf], [region.tolerance, 2 * _NOISE], [torch.inf, 0.0]])
        ordered = torch.cat([limits[:1], rewarded[rewarded[:, 0].argsort()], limits[1:]])
        self._distance, self._reward = ordered.T.contiguous()
        self._slack = region.slack

    def see(self, position: Tensor, reward: Tensor) -> None:
        """Excludes what does not agree with the ``reward`` [R] of coming to ``position`` [R, 2]."""
        distance, got = distance_to(position, self.goals), reward.unsqueeze(-1)
        most = self._reward[torch.searchsorted(self._distance, distance - self._slack, right=True) - 1]
        least = self._reward[torch.searchsorted(self._distance, distance + self._slack)]
        left = self.possible & (got <= most + _NOISE) & (got >= least - _NOISE)
        # A goal beyond the ends of the region fits nowhere: what is nearest to a reward stands for it.
        otherwise = torch.where(got > 0, distance <= distance.amin(-1, keepdim=True) + self._slack, self.possible)
        self.possible = torch.where(left.any(-1, keepdim=True), left, otherwise)
        self.found = self.found | (reward > 0)

    def mean(self) -> Tensor:
        """Of the possible goals, [R, 2]: no estimate has a smaller expected squared error."""
        return self.possible.float() @ self.goals / self.possible.sum(-1, keepdim=True)

    def estimate(self) -> Tensor:
        """The possible goal that is nearest to the mean of all, [R, 2]."""
        return self.goals[distance_to(self.mean(), self.goals).masked_fill(~self.possible, torch.inf).argmin(-1)]


def train_ids(library: TaskLibrary) -> Tensor:
    """The training tasks; all where there is no such split."""
    return library.split("train") if "train" in library.split_names else torch.arange(library.num_tasks)


def distance_to(places: Tensor, others: Tensor) -> Tensor:
    """Distances [..., M] of ``places`` [..., 2] from ``others`` [M, 2]."""
    return torch.cdist(places, others, compute_mode="donot_use_mm_for_euclid_dist")
