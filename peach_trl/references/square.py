"""Goals anywhere in a square about the origin."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.envs.point import PointEnv
from peach_trl.references.candidates import REMEDY, Walk, distance_to

_SIDE = 40  # candidates along a side
_POINTS = 256  # of a way
_MOST_ROUNDS = 8
_SLACK = math.sqrt(2) / _SIDE  # in half-widths: half the diagonal of a candidate's cell


class Square(NamedTuple):
    """The square about the origin in which the goals of an environment lie: one kind of a region.

    A way through it goes around the origin, where episodes start, in one round or several, from the inside out. A round
    is a square with its corners cut off.

    Examples:
        >>> square = Square(half_width=6.0, tolerance=2.5, step=0.25)
        >>> square.candidates.shape, square.candidates.abs().max(), round(square.slack, 3)
        (torch.Size([1600, 2]), tensor(5.8500), 0.212)
        >>> square.walks.shape[1], square.walk(square.walks[:2]).order.shape
        (5, torch.Size([2, 1600]))
    """

    half_width: float  # metres
    tolerance: float  # distance from a goal within which there are rewards, metres
    step: float  # the first step from the origin is no longer than this, metres

    @classmethod
    def of(cls, env: EnvBase) -> Square:
        """The square of the goals of the default point, where its configuration says that it has one.

        Raises:
            ValueError: for other goals and environments, and for a square that no way of these searches.
        """
        if not isinstance(env, PointEnv) or env.config.goals != "square":
            raise ValueError(f"{type(env).__name__}: its goals fill no square; {REMEDY}")
        square = cls(env.config.radius, env.config.goal_tolerance, env.config.speed)
        if not len(square.walks):
            raise ValueError(f"goal_tolerance = {square.tolerance}: raise it to radius / 10 = {square.half_width / 10}")
        return square

    @property
    def candidates(self) -> Tensor:
        """The middles of equal cells; see :class:`~peach_trl.references.candidates.Region`."""
        axis = self.half_width * ((2 * torch.arange(_SIDE) + 1) / _SIDE - 1)
        return torch.cartesian_prod(axis, axis)

    @property
    def slack(self) -> float:
        """See :class:`~peach_trl.references.candidates.Region`."""
        return self.half_width * _SLACK

    @property
    def stays(self) -> Tensor:
        """A grid that includes the origin."""
        axis = torch.linspace(-self.half_width, self.half_width, 9)
        return torch.cartesian_prod(axis, axis)

    @property
    def walks(self) -> Tensor:
        """Half-width of the last round; share of it cut off at corners; where rounds start, 0 to 2; margin; rounds.

        Only those that come by all candidates, in as few rounds as possible; [0, 5] if none does.
        """
        outer = self.half_width - self.tolerance * torch.linspace(0.3, 0.8, 6)
        margins = (self.tolerance - self.slack) * torch.tensor([0.88, 0.98])
        for rounds in range(1, _MOST_ROUNDS + 1):
            sizes = torch.cartesian_prod(outer[outer > 0], torch.tensor([0.0, 0.15, 0.3]), margins)
            walks = [
                (o, c, 0.0, m, rounds) for o, c, m in sizes.tolist() if self._near(o, c, 0.0, m, rounds).any(0).all()
            ]
            if walks:
                starts = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]) * torch.arange(3).view(3, 1, 1)
                return (torch.tensor(walks) + starts).flatten(0, 1)
        return torch.zeros(0, 5)

    def walk(self, choices: Tensor) -> Walk:
        """Anticlockwise around the origin; places on a way are shares of its length."""
        paths = torch.stack([self._path(o, c, s, n) for o, c, s, _, n in choices.tolist()])  # [R, P, 2]
        first = torch.stack([self._near(*choice).float().argmax(0) for choice in choices.tolist()])
        length = (paths[:, 1:] - paths[:, :-1]).norm(dim=-1).sum(-1, keepdim=True)

        def places(ahead: Tensor) -> Tensor:
            index = ahead * (_POINTS - 1)
            low = index.floor().long().clamp(0, _POINTS - 2)
            rows, part = torch.arange(len(paths)).unsqueeze(-1), (index - low).unsqueeze(-1)
            return paths[rows, low] * (1 - part) + paths[rows, low + 1] * part

        return Walk(
            order=first / (_POINTS - 1),
            leads=torch.linspace(0, 4 * self.tolerance, 16) / length,
            margin=choices[:, 3:4],
            places=places,
        )

    def _near(self, outer: float, cut: float, start: float, margin: float, rounds: float) -> Tensor:
        """Which candidates each point of a way comes by, or the first step shows to be none, bool [P, C]."""
        near = distance_to(self._path(outer, cut, start, rounds), self.candidates) <= margin
        return near | (self.candidates.norm(dim=-1) <= self.tolerance - self.slack - self.step)

    def _path(self, outer: float, cut: float, start: float, rounds: float) -> Tensor:
        """Points [P, 2] at equal distances along a way, in metres."""
        side = torch.tensor([[1.0, 0.0], [1.0, 1.0 - cut], [1.0 - cut, 1.0]])  # the east, up to the next
        turns = [torch.tensor([[c, s], [-s, c]]) for c, s in ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))]
        ring = torch.cat([side @ turn for turn in turns]).roll(-int(start), 0)
        ring = torch.cat([ring, ring[:1]])
        corners = torch.cat([outer * (n + 1) / rounds * ring for n in range(int(rounds))])
        along = torch.cat([torch.zeros(1), (corners[1:] - corners[:-1]).norm(dim=-1).cumsum(0)])
        wanted = torch.linspace(0, along[-1].item(), _POINTS)
        before = (torch.searchsorted(along, wanted, right=True) - 1).clamp(max=len(corners) - 2)
        length = (along[before + 1] - along[before]).clamp(min=1e-9)
        return torch.lerp(corners[before], corners[before + 1], ((wanted - along[before]) / length).unsqueeze(-1))
