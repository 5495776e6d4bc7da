"""Views: what a level reads of an observation, and how it reads goals.

A level that walks needs to know how its body is posed and moves, and where its goal lies from there; where on the map
it is, and which way is north, is none of its business: what it learns in one place then holds in all. The levels above
it want just that. So environments name views of their observation, and each level reads one; see
:attr:`~peach_trl.envs.families.base.TaskFamily.views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peach_trl.config import AUTO, ConfigError, option
from peach_trl.declared import declared


@dataclass(frozen=True)
class ViewsConfig:
    """What each level reads of an observation; see ``configs/`` for values and comments."""

    lower: str = option(help="view of the lowest level, by the name that the environment gives it; all; auto")
    top: str = option(help="view of the levels above it, likewise")
    context: str = option(help="view of the context encoder, likewise")
    normalise: int = option(
        low=0, high=10**12, help="environment steps that the mean and deviation of what has no bounds are of"
    )


COMPUTED, WITHIN_1 = -1, -2  # instead of the index of an entry


class View(nn.Module):
    """Some entries of an observation, all of them by default; the base of other views, which give the two methods.

    Args:
        observation_dim: entries of the observation, D.
        entries: the indices that are read, V of them; ``None`` for all.

    Attributes:
        dim: numbers that are read, V.
        turns: whether goals are read in a frame of the body's own; they then lie relative to the state.
        entries: where they come from unchanged, V numbers of 0 to D - 1; ``COMPUTED`` for what is made of several, and
            ``WITHIN_1`` for what is besides within [-1, 1].

    Raises:
        ValueError: for an index that the observation does not have.

    Examples:
        >>> view = View(6, [0, 1, 4])
        >>> view(torch.arange(6.0)), view.dim
        (tensor([0., 1., 4.]), 3)
    """

    turns = False

    def __init__(self, observation_dim: int, entries: Sequence[int] | None = None) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        self.entries = list(range(observation_dim)) if entries is None else [int(i) for i in entries]
        if not self.entries or not WITHIN_1 <= min(self.entries) <= max(self.entries) < observation_dim:
            raise ValueError(f"entries = {self.entries}: must be of 0 to {observation_dim - 1}, and one at least")
        self._whole = self.entries == list(range(observation_dim))

    @property
    def dim(self) -> int:
        """Numbers that are read, V."""
        return len(self.entries)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., D] to [..., V]."""
        return observation if self._whole else _entries(observation, self.entries)

    def goal(self, observation: Tensor, offset: Tensor) -> Tensor:
        """How a goal is read that lies by ``offset`` [..., G] from the state: as it is."""
        return offset


class HeadingView(View):
    """A body as it feels itself: goals and velocities seen from where its torso heads, no place and no compass.

    Reads, in this order: other entries as they are (heights, joints, rates, the torso's own angular velocity); the
    direction of up in the torso's heading frame (3); the velocity along its heading, to its left, and up (3). The
    heading is that of the torso's x axis on the ground. Those pairs of a goal's numbers that are a place or a velocity
    in the plane are turned into the same frame.

    Args:
        observation_dim: entries of the observation, D.
        quaternion: indices of the torso's orientation (w, x, y, z), as MuJoCo has it.
        velocity: indices of its linear velocity in the world's frame, m/s.
        others: indices of what is read as it is.
        pairs: of a goal's numbers that are turned.

    Examples:
        >>> view = HeadingView(10, quaternion=[0, 1, 2, 3], velocity=[4, 5, 6], others=[7])
        >>> west = torch.tensor([0.0, 0, 0, 1, -2, 0, 0, 0.5, 0, 0])  # turned about z by 180 degrees, moves west
        >>> view(west) + 0  # and so straight ahead
        tensor([0.5000, 0.0000, 0.0000, 1.0000, 2.0000, 0.0000, 0.0000])
        >>> view.goal(west, torch.tensor([-3.0, 1.0]))
        tensor([ 3., -1.])
    """

    turns = True

    def __init__(
        self,
        observation_dim: int,
        quaternion: Sequence[int],
        velocity: Sequence[int],
        others: Sequence[int],
        pairs: Sequence[tuple[int, int]] = ((0, 1),),
    ) -> None:
        super().__init__(observation_dim, [*others, *[WITHIN_1] * 3, *[COMPUTED] * 3])
        if len(quaternion) != 4 or len(velocity) != 3:
            raise ValueError(
                f"quaternion = {list(quaternion)}, velocity = {list(velocity)}: need the indices of 4 and of 3 entries"
            )
        self.quaternion, self.velocity, self.others = list(quaternion), list(velocity), list(others)
        self.pairs = tuple(pairs)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., D] to [..., V]."""
        w, x, y, z = _entries(observation, self.quaternion).split(1, -1)
        size = w * w + x * x + y * y + z * z
        up = torch.cat([x * z + w * y, y * z - w * x, 0.5 * size - x * x - y * y], -1) * (2 / size.clamp(min=1e-6))
        ahead = self._ahead(observation)
        seen = [self._turned(ahead, up), self._turned(ahead, _entries(observation, self.velocity))]
        return torch.cat([_entries(observation, self.others), *seen], -1)

    def goal(self, observation: Tensor, offset: Tensor) -> Tensor:
        """How a goal is read that lies by ``offset`` [..., G] from the state: turned into the heading frame."""
        ahead = self._ahead(observation)
        if self.pairs == ((0, 1),):
            return self._turned(ahead, offset)
        parts = list(offset.split(1, -1))
        for i, j in self.pairs:
            parts[i], parts[j] = self._turned(ahead, torch.cat([parts[i], parts[j]], -1)).split(1, -1)
        return torch.cat(parts, -1)

    def _ahead(self, observation: Tensor) -> Tensor:
        """Cosine and sine of the heading, [..., 2]; of a torso that looks straight up, north."""
        w, x, y, z = _entries(observation, self.quaternion).split(1, -1)
        ahead = torch.cat([w * w + x * x - y * y - z * z, 2 * (x * y + w * z)], -1)
        size = ahead.square().sum(-1, keepdim=True).sqrt()
        return torch.where(size > 1e-6, ahead / size.clamp(min=1e-6), ahead.new_tensor([1.0, 0.0]))

    @staticmethod
    def _turned(ahead: Tensor, vector: Tensor) -> Tensor:
        """A vector [..., G] whose first two numbers are seen from the heading."""
        cos, sin = ahead.split(1, -1)
        x, y = vector[..., :1], vector[..., 1:2]
        return torch.cat([cos * x + sin * y, cos * y - sin * x, vector[..., 2:]], -1)


def find_view(env: Any, reader: str, name: str = AUTO) -> View | None:
    """The view of an environment's observation that ``reader`` reads; ``None`` for all of it.

    Args:
        env: with the attributes ``views``, views by name, and ``reads``, names by reader; one without them has none.
        reader: ``"lower"``, ``"top"`` or ``"context"``.
        name: of a view, ``"all"``, or ``"auto"`` for the one that the environment names.

    Raises:
        ConfigError: for a name that the environment does not have.
    """
    views: Mapping[str, View] = declared(env, "views", {})
    if name == AUTO:
        name = declared(env, "reads", {}).get(reader, "all")
    if name == "all":
        return None
    if name not in views:
        raise ConfigError(f"views.{reader} = {name!r}: this environment has {', '.join(['all', *views])}")
    return views[name]


def _entries(observation: Tensor, entries: Sequence[int]) -> Tensor:
    """Some entries [..., n]: a view of the memory where they lie side by side."""
    first = entries[0] if entries else 0
    if list(entries) == list(range(first, first + len(entries))):
        return observation[..., first : first + len(entries)]
    return observation[..., entries]
