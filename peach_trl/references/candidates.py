"""The goals that may still be: an arc in the plane, and the candidates on it that agree with what was seen."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.tasks import TaskLibrary

REMEDY = "references need two actions and goals (x, y) on a circle about the origin; ask has_references first"
SHARES = (torch.arange(400) + 0.5) / 400  # [C], of the way along an arc: the candidates that stand for all its goals
_NOISE = 1e-5  # of rewards


class Arc(NamedTuple):
    """The part of a circle about the origin on which the goals of an environment lie.

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
        space, actions = getattr(env, "goal_space", None), env.action_spec.shape[-1]
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


class Candidates:
    """The goals that agree with all rewards so far: the exact posterior of a uniform prior, on a grid, for R rows.

    Args:
        arc: where goals may lie.
        samples: distance from the goal and reward there, [M, 2]; what lies between two samples may be had there.
        rows: R.

    Attributes:
        goals: [C, 2], the candidates, in metres.
        possible: bool [R, C].
        found: bool [R], whether there was a reward.

    Examples:
        >>> samples = torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
        >>> candidates = Candidates(Arc(radius=1.0, start=0.0, length=torch.pi, tolerance=0.2), samples, rows=1)
        >>> candidates.see(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))
        >>> left = candidates.goals[candidates.possible[0]]
        >>> bool((left - torch.tensor([1.0, 0.0])).norm(dim=-1).min() > 0.19), candidates.found
        (True, tensor([False]))
    """

    def __init__(self, arc: Arc, samples: Tensor, rows: int) -> None:
        self.goals = arc.places(SHARES)
        self.possible = torch.ones(rows, len(self.goals), dtype=torch.bool)
        self.found = torch.zeros(rows, dtype=torch.bool)
        rewarded = samples[samples[:, 1] > 0]
        limits = torch.tensor([[-torch.inf, torch.inf], [arc.tolerance, 2 * _NOISE], [torch.inf, 0.0]])
        ordered = torch.cat([limits[:1], rewarded[rewarded[:, 0].argsort()], limits[1:]])
        self._distance, self._reward = ordered.T.contiguous()
        self._slack = arc.radius * arc.length / len(self.goals) / 2  # the goal lies this near to a candidate

    def see(self, position: Tensor, reward: Tensor) -> None:
        """Excludes what does not agree with the ``reward`` [R] of coming to ``position`` [R, 2]."""
        distance, got = distance_to(position, self.goals), reward.unsqueeze(-1)
        most = self._reward[torch.searchsorted(self._distance, distance - self._slack, right=True) - 1]
        least = self._reward[torch.searchsorted(self._distance, distance + self._slack)]
        left = self.possible & (got <= most + _NOISE) & (got >= least - _NOISE)
        self.possible = torch.where(left.any(-1, keepdim=True), left, self.possible)  # a goal off the arc fits nowhere
        self.found = self.found | (reward > 0)

    def estimate(self) -> Tensor:
        """The possible goal that is nearest to the mean of all, [R, 2]."""
        mean = self.possible.float() @ self.goals / self.possible.sum(-1, keepdim=True)
        return self.goals[distance_to(mean, self.goals).masked_fill(~self.possible, torch.inf).argmin(-1)]


def train_ids(library: TaskLibrary) -> Tensor:
    """The training tasks; all where there is no such split."""
    return library.split("train") if "train" in library.split_names else torch.arange(library.num_tasks)


def distance_to(places: Tensor, others: Tensor) -> Tensor:
    """Distances [..., M] of ``places`` [..., 2] from ``others`` [M, 2]."""
    return torch.cdist(places, others, compute_mode="donot_use_mm_for_euclid_dist")
