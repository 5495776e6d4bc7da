"""The UR5 reacher of Hierarchical Actor-Critic: bring three joints of a robot arm to given angles."""

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


class UR5Reacher(TaskFamily):
    """The UR5 reacher of Levy et al. 2019 (arXiv 1712.00948); a task is an angle for each of three joints.

    The joints are shoulder pan, shoulder lift and elbow, without limits; the wrist is left out. At angles 0 the arm
    lies straight along x, low over the floor; a negative lift raises it.

    - Observation ``[N, 6]``: the angles in rad, less whole turns, in (-2 pi, 2 pi) with the sign of the angle; then
      the velocities in rad/s.
    - Action ``[N, 3]``: the velocity asked of each joint; 1 is 3.15, 5 and 3.15 rad/s. Its servo pushes by 10 N m s
      times what is missing, and friction brakes by 10 N m s times the velocity.
    - Goal ``[3]``: the angles, entries 0 to 2 of the observation, achieved within 10 degrees each.
    - Subgoal ``[6]``: angles and velocities, all of the observation, achieved within 10 degrees and 2 rad/s each.
    - Tasks ``[P = 3]``: uniform over the source's end goals: pan from pi / 4 to pi to either side, lift in
      [-pi / 4, 0], elbow within pi / 4, and such that the elbow is above 0.05 m and the wrist above 0.15 m.
    - Reward ``[N, 1]``: 1.0 after each step that ends with the goal achieved, else 0.0. The source's -1 and 0 are this
      reward less one; levels that reach for goals compute theirs from the goal spaces.
    - Episodes start at rest with a random pan, never terminate, and are truncated after 600 steps of 0.03 s.

    With ``observe_goal=True`` the goal is shown, as in the source; otherwise it has to be found.

    Source of all values: github.com/andrew-j-levy/Hierarchical-Actor-Critc-HAC-, ``UR5_LAY_3_design_agent_and_env.py``,
    ``environment.py`` and ``mujoco_files/ur5.xml``, the last as copied in github.com/AboudyKreidieh/h-baselines.
    Differences:

    - Capsules and cylinders in place of meshes, so that contacts with the floor differ by about a centimetre; lengths,
      masses, inertias, damping and servos are the source's.
    - The source's state has the raw angles, and it takes off whole turns only for goals; here the observation has them
      off. The motion is the same at any number of turns.
    - The source cuts velocities at 4 rad/s before they are compared with subgoals; here they stay as they are.
    - The source ends an episode with the goal achieved, and takes one simulation step before the first observation.
    - The counts of tasks are ours; the source draws goals without end.

    Args:
        num_envs: number of rows, N.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Raises:
        ValueError: for arguments that cannot be used.

    Examples:
        >>> env = UR5Reacher(3, split="test", seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["observation"].shape, rollout["action"].shape, env.library.parameters.shape
        (torch.Size([3, 5, 6]), torch.Size([3, 5, 3]), torch.Size([160, 3]))
        >>> env.goal_space.dim, env.subgoal_space.dim
        (3, 6)
    """

    counts: ClassVar[TaskCounts] = TaskCounts(train=100, validation=30, test=30)
    episode_steps: ClassVar[int] = 600
    frame_skip: ClassVar[int] = 15

    #: largest pan at the start, in rad
    start_pan: ClassVar[float] = math.pi / 8
    #: lift and elbow at the start, in rad
    start_angles: ClassVar[tuple[float, float]] = (3.22757851e-03, -1.27944547e-01)
    #: smallest and largest end goal, in rad
    goal_low: ClassVar[tuple[float, ...]] = (-math.pi, -math.pi / 4, -math.pi / 4)
    goal_high: ClassVar[tuple[float, ...]] = (math.pi, 0.0, math.pi / 4)
    #: end goals have a larger pan than this, in rad, and the elbow and the wrist above these heights, in metres
    goal_least_pan: ClassVar[float] = math.pi / 4
    goal_least_heights: ClassVar[tuple[float, float]] = (0.05, 0.15)
    #: largest subgoal, in rad and rad/s
    subgoal_limit: ClassVar[tuple[float, ...]] = (2 * math.pi,) * 3 + (4.0,) * 3
    #: within which angle, in rad, and velocity, in rad/s, goals and subgoals are achieved
    angle_tolerance: ClassVar[float] = math.radians(10)
    velocity_tolerance: ClassVar[float] = 2.0
    #: height of the shoulder, length of the upper arm and of the forearm, in metres
    links: ClassVar[tuple[float, float, float]] = (0.089159, 0.425, 0.39225)

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """See :class:`TaskFamily`."""
        return mujoco.MjModel.from_xml_path(str(OWN_ASSETS / "ur5.xml"))

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Angles in rad, ``[size, 3]``, drawn anew until all are within the arm's reach."""
        low, high = (torch.tensor(x, dtype=torch.float64) for x in (UR5Reacher.goal_low, UR5Reacher.goal_high))
        tasks = torch.empty(0, 3, dtype=torch.float64)
        while len(tasks) < size:
            drawn = low + (high - low) * torch.rand(size, 3, generator=generator, dtype=torch.float64)
            tasks = torch.cat([tasks, drawn[_possible(drawn)]])
        return tasks[:size]

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :class:`TaskFamily`."""
        high = torch.tensor([2 * math.pi] * 3 + [math.inf] * 3)
        subgoal = torch.tensor(self.subgoal_limit)
        angles, velocities = [self.angle_tolerance] * 3, [self.velocity_tolerance] * 3
        return Spaces(
            observation_low=-high,
            observation_high=high,
            goal=GoalSpace(range(3), self.goal_low, self.goal_high, angles),
            subgoal=GoalSpace(range(6), -subgoal, subgoal, angles + velocities),
        )

    def _reset_state(self, rows: np.ndarray) -> None:
        drawn = torch.rand(len(rows), generator=self._generator, dtype=torch.float64).numpy()
        self._qpos[rows, 0] = self.start_pan * (2 * drawn - 1)
        self._qpos[rows, 1:] = self.start_angles

    def _observe(self, out: np.ndarray) -> None:
        np.fmod(self._qpos, 2 * math.pi, out=out[:, :3], casting="same_kind")
        out[:, 3:] = self._qvel

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """Where the wrist is at the goal's angles; see :meth:`BatchedMujocoEnv.goal_position`."""
        data.qpos[:] = goal[:3]
        mujoco.mj_kinematics(model, data)
        return data.site("wrist").xpos.copy()


def _possible(goals: Tensor) -> Tensor:
    """Which goals ``[n, 3]`` the source takes as end goals, bool ``[n]``."""
    pan, lift, elbow = goals.unbind(-1)
    shoulder, upper_arm, forearm = UR5Reacher.links
    elbow_height = shoulder - upper_arm * lift.sin()
    wrist_height = elbow_height - forearm * (lift + elbow).sin()
    least_elbow, least_wrist = UR5Reacher.goal_least_heights
    return (pan.abs() > UR5Reacher.goal_least_pan) & (elbow_height > least_elbow) & (wrist_height > least_wrist)
