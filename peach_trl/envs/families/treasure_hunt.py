"""A treasure on a circle, and a mountain that shows where it is: information has a price and a place."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import OWN_ASSETS, Spaces, TaskCounts
from peach_trl.envs.families.point_robot import PointRobot
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import circle_goals

if TYPE_CHECKING:
    from mujoco.batch import Batch

_ARENA = 1.5  # metres; half-width of the square that the point stays in


class TreasureHunt(PointRobot):
    """A point that looks for a treasure on a circle, and may go up a mountain first, whose top shows where it is.

    ``TreasureHunt-v0`` of HyperX (Zintgraf et al. 2021, arXiv 2010.01062; code lmzintgraf/hyperx,
    ``environments/navigation/treasure_hunt.py``, with the values of ``environments/__init__.py``). What is as
    published:

    - observation: the position (x, y) in metres, then the place of the treasure within 0.1 m of the origin, the top of
      the mountain, and (0, 0) elsewhere: 4 numbers;
    - dynamics: the position moves by 0.1 m times the action, and stays in the square [-1.5, 1.5] x [-1.5, 1.5];
    - start: (0, -1), always; treasures on the circle of 1 m radius around the origin;
    - reward, with d the distance from the origin after the step: on the mountain, d at most 0.5 m, -5 - (0.5 - d);
      elsewhere within 0.1 m of the treasure 10; elsewhere -5, and outside the circle -5 d;
    - episodes of 100 steps, which go on at the treasure, and never terminate; meta-tests of 1 episode.

    What is not: the source draws a new angle for each meta-episode, uniformly. Here tasks are a fixed list, and each
    split has one treasure in each of as many equal arcs as it has tasks, at a place drawn uniformly.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s. A task's parameters are its treasure's x and y in
            metres.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for 100.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = TreasureHunt(num_envs=2, split="test", seed=0)
        >>> env.reset()["observation"][0]
        tensor([ 0., -1.,  0.,  0.])
        >>> for _ in range(10):  # to the top, the last half of it up the mountain
        ...     values = env.advance(torch.tensor([[0.0, 1.0]] * 2))[0]
        >>> bool((values["observation"][:, 2:] == env.library.parameters[env.task_id]).all()), values["reward"][0]
        (True, tensor([-5.5000]))
    """

    counts = TaskCounts(60, 60, 60)
    episode_steps = 100
    best_reward, goal_size = 10.0, 0.1
    #: metres: of the circle of treasures, of the mountain, and how near to a treasure or to the top counts
    radius: ClassVar[float] = 1.0
    mountain: ClassVar[float] = 0.5
    near: ClassVar[float] = 0.1
    #: a step's reward at the treasure, and elsewhere on or in the circle
    treasure: ClassVar[float] = 10.0
    penalty: ClassVar[float] = -5.0

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model, of ``assets/point_robot.xml``, with the mountain drawn in."""
        spec = mujoco.MjSpec.from_file(str(OWN_ASSETS / "point_robot.xml"))
        shape = {"type": mujoco.mjtGeom.mjGEOM_CYLINDER, "pos": [0.0, 0.0, 0.0]}
        spec.worldbody.add_site(name="mountain", size=[cls.mountain, 0.01, 0.0], rgba=[0.55, 0.45, 0.35, 0.5], **shape)
        spec.worldbody.add_site(name="top", size=[cls.near, 0.02, 0.0], rgba=[0.35, 0.25, 0.2, 0.7], **shape)
        return spec.compile()

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Treasures (x, y) in metres, ``[size, 2]``: one in each of ``size`` equal arcs of the circle."""
        return circle_goals(size, generator, cls.radius)

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """Positions in the square, hints in that of the circle; goals and subgoals are positions, within 0.1 m."""
        high = torch.tensor([_ARENA, _ARENA, self.radius, self.radius])
        space = GoalSpace([0, 1], -_ARENA, _ARENA, self.near, "euclidean")
        return Spaces(observation_low=-high, observation_high=high, goal=space, subgoal=space)

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        super()._simulate(batch, rows)
        np.clip(self._qpos, -_ARENA, _ARENA, out=self._qpos)

    def _reset_state(self, rows: np.ndarray) -> None:
        self._qpos[rows] = 0.0, -self.radius

    def _observe(self, out: np.ndarray) -> None:
        out[:, :2] = self._qpos
        out[:, 2:] = self._goal.numpy() * (self._from_top() < self.near)

    def _reward(self, observation: Tensor) -> Tensor:
        top = self._from_top()
        found = self._distance(self._qpos, self._goal.numpy()) <= self.near
        level = np.where(found, self.treasure, self.penalty * np.maximum(top / self.radius, 1.0))
        reward = np.where(top <= self.mountain, self.penalty - (self.mountain - top), level)
        return torch.from_numpy(reward.astype(np.float32))

    def _from_top(self) -> np.ndarray:
        """Distances [N, 1] from the origin, in metres."""
        return np.hypot(self._qpos[:, :1], self._qpos[:, 1:])
