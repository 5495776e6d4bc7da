"""Goals on a circle about the origin, or on a part of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.declared import declared
from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.references.candidates import REMEDY, Walk, train_ids

_SHARES = (torch.arange(400) + 0.5) / 400  # [C], of the way along an arc: the candidates that stand for all its goals


class Arc(NamedTuple):
    """The part of a circle about the origin on which the goals of an environment lie: one kind of a region.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> arc = Arc.of(FAMILIES["SparsePointRobot"](num_envs=1))
        >>> round(arc.radius, 2), abs(round(arc.start, 1)), round(arc.length, 1), round(arc.tolerance, 2)
        (1.0, 0.0, 3.2, 0.2)
    """

    radius: float  # of the circle, metres
    start: float  # angle of one end, radians
    length: float  # angle from there to the other end, anticlockwise; 2 pi for a whole circle
    tolerance: float  # distance from a goal within which there are rewards, metres

    @classmethod
    def of(cls, env: EnvBase) -> Arc:
        """The arc that the goals of the training tasks span, and half a mean gap at either end.

        It is the whole circle where the widest gap is below 0.5 radians or 3 mean ones.

        Raises:
            ValueError: where goals are not in the plane on a circle about the origin, and for other environments.
        """
        space, actions = declared(env, "goal_space"), env.action_spec.shape[-1]
        if not isinstance(env, BatchedMujocoEnv) or space is None or space.metric != "euclidean":
            raise ValueError(f"{type(env).__name__}, goal_space = {space}: {REMEDY}")
        goals = env.library.parameters[train_ids(env.library)]
        if space.dim != 2 or actions != 2 or goals.shape[1] != 2:
            raise ValueError(f"{space.dim} goal, {actions} action and {goals.shape[1]} task entries: {REMEDY}")
        radii, angles = torch.linalg.vector_norm(goals, dim=-1), torch.atan2(goals[:, 1], goals[:, 0]).unique()
        radius = radii.mean().item()
        if len(angles) < 2 or (radii - radius).abs().max() > 0.01 * radius:
            raise ValueError(f"radii {radii.min():.3g} to {radii.max():.3g}, {len(angles)} angles: {REMEDY}")
        gaps = angles.roll(-1) - angles
        gaps[-1] += 2 * math.pi
        widest = gaps.max().item()
        mean = (2 * math.pi - widest) / (len(gaps) - 1)  # of the others
        if widest < max(0.5, 3 * mean):
            return cls(radius, 0.0, 2 * math.pi, space.tolerance.item())
        start = angles.roll(-1)[gaps.argmax()].item() - mean / 2
        return cls(radius, start, 2 * math.pi - widest + mean, space.tolerance.item())

    def places(self, share: Tensor, radius: Tensor | None = None) -> Tensor:
        """The places [..., 2] at ``share`` [...] of the way along, 0 to 1; if given, on another ``radius`` [...]."""
        angle = self.start + share * self.length
        scale = torch.tensor(self.radius) if radius is None else radius
        return scale.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)

    @property
    def candidates(self) -> Tensor:
        """See :class:`~peach_trl.references.candidates.Region`."""
        return self.places(_SHARES)

    @property
    def slack(self) -> float:
        """Likewise."""
        return self.radius * self.length / len(_SHARES) / 2

    @property
    def stays(self) -> Tensor:
        """On the arc and up to the tolerance inside of it."""
        radii = (self.radius - self.tolerance * torch.linspace(0, 1, 5)).clamp(min=0)
        return self.places(*torch.cartesian_prod(torch.linspace(0, 1, 17), radii).T)

    @property
    def walks(self) -> Tensor:
        """Radius of the way, in metres; where on the arc it starts, 0 to 1 (from the end it goes on at 0); margin."""
        radii = (self.radius - self.tolerance * torch.tensor([0.1, 0.3, 0.5, 0.7])).clamp(min=0)
        margins = self.tolerance * torch.tensor([0.8, 0.95])
        return torch.cartesian_prod(radii, torch.tensor([0.0, 0.125, 0.25, 0.5]), margins)

    def walk(self, choices: Tensor) -> Walk:
        """Anticlockwise along a circle; places on it are shares of the arc, from where the way starts."""
        radius, first, margin = choices.split(1, -1)
        return Walk(
            order=(_SHARES - first) % 1.0,
            leads=torch.linspace(0, 4 * self.tolerance / self.radius / self.length, 16),
            margin=margin,
            places=lambda ahead: self.places((ahead + first) % 1.0, radius),
        )
