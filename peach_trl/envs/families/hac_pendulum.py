"""The inverted pendulum of Hierarchical Actor-Critic: swing up, then be at an angle at a velocity."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import OWN_ASSETS, Spaces, TaskCounts, TaskFamily
from peach_trl.envs.goal_space import GoalSpace


class Pendulum(TaskFamily):
    """The pendulum of Levy et al. 2019 (arXiv 1712.00948); a task is an angle and a velocity near upright.

    A bob of 1 kg, 0.5 m from its hinge, starts anywhere but near upright, almost at rest. The torque of 2 N m is less
    than half of what would lift it, so it has to be swung. Angle 0 is upright.

    - Observation ``[N, 4]``: cos, sin of the angle, the angle in (-pi, pi] rad, the velocity in rad/s.
    - Action ``[N, 1]``: the torque; 1 is 2 N m.
    - Goal and subgoal ``[2]``: angle and velocity, entries 2 and 3 of the observation. Both are achieved within
      9.5 degrees and 0.6 rad/s; distance between angles does not wrap, as in the source.
    - Tasks ``[P = 2]``: uniform over the source's end goals for training, within 16 degrees and 0.6 rad/s.
    - Reward ``[N, 1]``: 1.0 after each step that ends with the goal achieved, else 0.0. The source's -1 and 0 are this
      reward less one; levels that reach for goals compute theirs from the goal spaces.
    - Episodes never terminate; they are truncated after 1000 steps of 0.02 s.

    With ``observe_goal=True`` the goal is shown, as in the source; otherwise it has to be found.

    Source of all values: github.com/andrew-j-levy/Hierarchical-Actor-Critc-HAC-, ``mujoco_files/pendulum.xml``,
    ``environment.py`` and ``example_designs/PENDULUM_LAY_3_design_agent_and_env.py``. Differences:

    - The source's state is (cos, sin, velocity), and it reads the angle of its goals off the simulator; here the angle
      is part of the observation.
    - The source cuts the velocity at 15 rad/s before it is compared with goals; here it stays as it is.
    - The source tests on one goal, upright at rest; here all splits are drawn alike, and the counts are ours.
    - The source ends an episode with the goal achieved, and takes one simulation step before the first observation.

    Args:
        num_envs: number of rows, N.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Raises:
        ValueError: for arguments that cannot be used.

    Examples:
        >>> env = Pendulum(3, observe_goal=True, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["observation"].shape, rollout["goal"].shape
        (torch.Size([3, 5, 4]), torch.Size([3, 5, 2]))
        >>> env.goal_space.indices, env.dt
        ((2, 3), 0.02)
    """

    counts: ClassVar[TaskCounts] = TaskCounts(train=100, validation=30, test=30)
    episode_steps: ClassVar[int] = 1000
    frame_skip: ClassVar[int] = 10

    #: angle and velocity that an episode may start with, from and to, in rad and rad/s
    start_range: ClassVar[tuple[tuple[float, float], ...]] = ((math.pi / 4, 7 * math.pi / 4), (-0.05, 0.05))
    #: largest angle and velocity of an end goal, in rad and rad/s
    goal_limit: ClassVar[tuple[float, float]] = (math.radians(16), 0.6)
    #: largest angle and velocity of a subgoal
    subgoal_limit: ClassVar[tuple[float, float]] = (math.pi, 15.0)
    #: within which angle and velocity a goal or a subgoal is achieved
    tolerance: ClassVar[tuple[float, float]] = (math.radians(9.5), 0.6)
    #: in rad/s, never passed: beyond 20, damping (0.1 N m s) takes more than the torque gives, and from there a fall
    #: from upright to hanging adds 2 m g l = 9.81 J to an inertia of 0.251 kg m^2, to sqrt(20^2 + 78.2) = 21.9
    top_velocity: ClassVar[float] = 22.0

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """See :class:`TaskFamily`."""
        return mujoco.MjModel.from_xml_path(str(OWN_ASSETS / "pendulum.xml"))

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Angles in rad and velocities in rad/s, ``[size, 2]``."""
        unit = 2 * torch.rand(size, 2, generator=generator, dtype=torch.float64) - 1
        return unit * torch.tensor(Pendulum.goal_limit, dtype=torch.float64)

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :class:`TaskFamily`."""
        high = torch.tensor([1.0, 1.0, math.pi, self.top_velocity])
        goal, subgoal = torch.tensor(self.goal_limit), torch.tensor(self.subgoal_limit)
        return Spaces(
            observation_low=-high,
            observation_high=high,
            goal=GoalSpace([2, 3], -goal, goal, self.tolerance),
            subgoal=GoalSpace([2, 3], -subgoal, subgoal, self.tolerance),
        )

    def _reset_state(self, rows: np.ndarray) -> None:
        drawn = torch.rand(len(rows), 2, generator=self._generator, dtype=torch.float64).numpy()
        low, high = np.array(self.start_range).T
        start = low + (high - low) * drawn
        self._qpos[rows], self._qvel[rows] = start[:, :1], start[:, 1:]

    def _observe(self, out: np.ndarray) -> None:
        np.cos(self._qpos, out=out[:, 0:1], casting="same_kind")
        np.sin(self._qpos, out=out[:, 1:2], casting="same_kind")
        np.subtract(math.pi, np.mod(math.pi - self._qpos, 2 * math.pi), out=out[:, 2:3], casting="same_kind")
        out[:, 3:] = self._qvel

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """Where the bob is at the goal's angle; see :meth:`BatchedMujocoEnv.goal_position`."""
        data.qpos[0] = goal[0]
        mujoco.mj_kinematics(model, data)
        return data.site("tip").xpos.copy()
