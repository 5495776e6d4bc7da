"""An arm of two links that must find a hidden place with its tip."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import Spaces, TaskCounts
from peach_trl.envs.families.bodies import Body
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import circle_goals

_LINKS = 0.1, 0.11  # lengths up to the second joint, and from there to the tip, metres


class ReacherCircle(Body):
    """gymnasium's ``Reacher-v5``, whose target is hidden on a circle around its base.

    This family is our own. A task is a place (x, y), 0.15 m from the base. The reward of a step is 1 where the tip ends
    within 0.04 m of it, else 0. An episode has 100 steps of 0.02 s, and never terminates. 60 training, validation and
    test tasks.

    The observation ``[8]``: cosines and sines of the two joints, their rates in rad/s, and the tip's x and y in metres.
    The two actions are the joints' torques. Different from gymnasium: the target is neither there nor observed (10
    entries), and does not move; episodes start from the same noise. Goals and subgoals are places of the tip, within
    0.02 m.

    Examples:
        >>> env = ReacherCircle(num_envs=2, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, bool((rollout["observation"][:, 0, 6] > 0.19).all())  # stretched out along x
        (torch.Size([2, 3, 8]), True)
    """

    asset = "reacher.xml"
    frame_skip = 2
    reset_noise = 0.1
    counts = TaskCounts(60, 60, 60)
    episode_steps = 100
    best_reward = 1.0
    goal_size: ClassVar[float] = 0.04
    radius: ClassVar[float] = 0.15
    subgoal_tolerance: ClassVar[float] = 0.02
    velocity_noise: ClassVar[float] = 0.005

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Places (x, y), ``[size, 2]``, metres: one in each of ``size`` equal arcs."""
        return circle_goals(size, generator, cls.radius)

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """Cosines, sines and places have bounds, rates none."""
        reach = sum(_LINKS)
        high = torch.tensor([1.0, 1.0, 1.0, 1.0, math.inf, math.inf, reach, reach])
        goal = GoalSpace([6, 7], -reach, reach, self.goal_size, "euclidean")
        return Spaces(-high, high, goal, GoalSpace([6, 7], -reach, reach, self.subgoal_tolerance, "euclidean"))

    def _observe(self, out: np.ndarray) -> None:
        first, second = self._qpos[:, 0], self._qpos[:, 1]
        out[:, 0], out[:, 1], out[:, 2], out[:, 3] = np.cos(first), np.cos(second), np.sin(first), np.sin(second)
        out[:, 4:6] = self._qvel[:, :2]
        out[:, 6] = _LINKS[0] * np.cos(first) + _LINKS[1] * np.cos(first + second)
        out[:, 7] = _LINKS[0] * np.sin(first) + _LINKS[1] * np.sin(first + second)

    def _reset_state(self, rows: np.ndarray) -> None:
        noise = 2 * torch.rand(len(rows), 4, generator=self._generator, dtype=torch.float64).numpy() - 1
        self._qpos[rows, :2] += self.reset_noise * noise[:, :2]
        self._qvel[rows, :2] += self.velocity_noise * noise[:, 2:]

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array([goal[0], goal[1], 0.01])
