"""The two worlds of Hierarchical Actor-Critic's ant: a square arena and four rooms."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import OWN_ASSETS, WALKING, Spaces, TaskCounts, TaskFamily, walking_views
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.modules.views import View

# Pose at the start, [15]: position in metres, quaternion, then hip and ankle of each leg in rad.
_START = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)


class AntReacher(TaskFamily):
    """The ant reacher of Levy et al. 2019 (arXiv 1712.00948); a task is a place in a walled square.

    The ant has four legs of two joints each. It starts anywhere within 9.5 m of the centre along x and y, more than 8 m
    from the goal. (So the start tells a little about a hidden goal, as published.)

    - Observation ``[N, 29]``: position of the torso in metres, its orientation as a quaternion, 8 joint angles in rad
      (``qpos``, 15 entries); then velocities in m/s and rad/s in the same order (``qvel``, 14).
    - Action ``[N, 8]``: torques of hips and ankles, of leg 4 first; 1 is 16 N m.
    - Goal ``[3]``: the torso's x, y, z, entries 0 to 2 of the observation, achieved within 0.5, 0.5 and 0.2 m.
    - Subgoal ``[5]``: x, y, z and the velocities along x and y, entries 0, 1, 2, 15, 16, achieved within 0.5, 0.5,
      0.2 m and 0.5 m/s.
    - Tasks ``[P = 3]``: uniform over the source's end goals, x and y within 9.5 m, z from 0.45 to 0.55 m.
    - Reward ``[N, 1]``: 1.0 after each step that ends with the goal achieved, else 0.0. The source's -1 and 0 are this
      reward less one; levels that reach for goals compute theirs from the goal spaces.
    - Episodes start at rest, never terminate, and are truncated after 500 steps of 0.3 s.

    With ``observe_goal=True`` the goal is shown, as in the source; otherwise it has to be found.

    Source of all values: github.com/andrew-j-levy/Hierarchical-Actor-Critc-HAC-, in ``ant_environments``:
    ``ant_reacher_2_levels/mujoco_files/ant_reacher.xml``, and ``environment.py`` and ``design_agent_and_env.py``
    beside it. Differences:

    - The source cuts z at 1 m and velocities at 3 m/s before they are compared with subgoals; here they stay as they
      are.
    - The source ends an episode with the goal achieved, and takes one simulation step before the first observation.
    - The counts of tasks are ours; the source draws goals without end.

    Args:
        num_envs: number of rows, N.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Raises:
        ValueError: for arguments that cannot be used.

    Examples:
        >>> env = AntReacher(2, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, rollout["action"].shape
        (torch.Size([2, 3, 29]), torch.Size([2, 3, 8]))
        >>> start, goal = rollout["observation"][:, 0, :2], env.library.parameters[:2, :2]
        >>> bool(((start - goal).norm(dim=-1) > 8).all())
        True
    """

    counts: ClassVar[TaskCounts] = TaskCounts(train=100, validation=30, test=30)
    episode_steps: ClassVar[int] = 500
    frame_skip: ClassVar[int] = 15

    asset: ClassVar[str] = "ant_hac_reacher.xml"
    #: largest x and y of a goal, in metres
    goal_limit: ClassVar[float] = 9.5
    #: smallest and largest z of a goal, in metres
    goal_height: ClassVar[tuple[float, float]] = (0.45, 0.55)
    #: largest x and y of a subgoal, in metres, up to the walls
    subgoal_limit: ClassVar[float] = 11.75
    #: largest z, in metres, and velocity, in m/s, of a subgoal
    subgoal_height: ClassVar[float] = 1.0
    subgoal_velocity: ClassVar[float] = 3.0
    #: within which x and y, z, in metres, and velocity, in m/s, goals and subgoals are achieved
    place_tolerance: ClassVar[float] = 0.5
    height_tolerance: ClassVar[float] = 0.2
    velocity_tolerance: ClassVar[float] = 0.5
    #: least distance of the start from the goal, in metres
    least_distance: ClassVar[float] = 8.0

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """See :class:`TaskFamily`."""
        return mujoco.MjModel.from_xml_path(str(OWN_ASSETS / cls.asset))

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Places x, y, z in metres, ``[size, 3]``."""
        unit = torch.rand(size, 3, generator=generator, dtype=torch.float64)
        low, high = AntReacher.goal_height
        unit[:, :2] = AntReacher.goal_limit * (2 * unit[:, :2] - 1)
        unit[:, 2] = low + (high - low) * unit[:, 2]
        return unit

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :class:`TaskFamily`."""
        high = torch.full((model.nq + model.nv,), math.inf)
        place, (lowest, highest) = self.goal_limit, self.goal_height
        far, fast = self.subgoal_limit, self.subgoal_velocity
        tolerance = [self.place_tolerance, self.place_tolerance, self.height_tolerance]
        return Spaces(
            observation_low=-high,
            observation_high=high,
            goal=GoalSpace(range(3), [-place, -place, lowest], [place, place, highest], tolerance),
            subgoal=GoalSpace(
                [0, 1, 2, model.nq, model.nq + 1],
                [-far, -far, 0.0, -fast, -fast],
                [far, far, self.subgoal_height, fast, fast],
                tolerance + [self.velocity_tolerance] * 2,
            ),
        )

    reads = WALKING

    def make_views(self) -> dict[str, View]:
        """See :meth:`TaskFamily.make_views`."""
        return walking_views(self.model, self.model.nq + self.model.nv, pairs=((0, 1), (3, 4)))

    def _reset_state(self, rows: np.ndarray) -> None:
        self._qpos[rows] = _START
        self._qpos[rows, :2] = self._draw_starts(self._goal[torch.from_numpy(rows), :2].double()).numpy()

    def _draw_starts(self, goals: Tensor) -> Tensor:
        """Where the torso starts, x and y ``[n, 2]``, for goals ``[n, 2]``."""
        starts, pending = torch.empty_like(goals), torch.arange(len(goals))
        while len(pending):
            unit = torch.rand(len(pending), 2, generator=self._generator, dtype=goals.dtype)
            starts[pending] = self.goal_limit * (2 * unit - 1)
            distance = torch.linalg.vector_norm(starts[pending] - goals[pending], dim=-1)
            pending = pending[distance <= self.least_distance]
        return starts

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """The place itself; see :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array(goal[:3], dtype=np.float64)


class AntFourRooms(AntReacher):
    """The ant in four rooms of Levy et al. 2019 (arXiv 1712.00948); a task is a place in one of the rooms.

    A cross of walls parts a square of 16 m into four rooms, joined by four doors 3 m wide. Each goal is in a room, x
    and y between 3 and 6.5 m from the centre lines, and the ant starts at such a place in one of the three other rooms.
    (So the start tells of a hidden goal which room it is not in, as published.)

    As :class:`AntReacher` but for the values: an action of 1 is 15 N m; places are achieved within 0.4 m along x and y,
    subgoal velocities within 0.8 m/s; subgoals are within 8 m of the centre; episodes are truncated after 700 steps.

    Source of all values: as for :class:`AntReacher`, ``ant_four_rooms_3_levels/mujoco_files/ant_four_rooms.xml``, and
    ``environment.py`` and ``design_agent_and_env.py`` beside it. (That ``design_agent_and_env.py`` has end goals within
    6 m, but ``environment.py`` draws them between 3 and 6.5 m.) The differences are the same.

    Examples:
        >>> env = AntFourRooms(2, split="validation", seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["next", "reward"].shape, env.goal_space.low
        (torch.Size([2, 3, 1]), tensor([-6.5000, -6.5000,  0.4500]))
        >>> start, goal = rollout["observation"][:, 0, :2], env.library.parameters[rollout["task_id"][:, 0, 0], :2]
        >>> bool((start.sign() != goal.sign()).any(-1).all())
        True
    """

    episode_steps: ClassVar[int] = 700

    asset: ClassVar[str] = "ant_hac_four_rooms.xml"
    goal_limit: ClassVar[float] = 6.5
    subgoal_limit: ClassVar[float] = 8.0
    place_tolerance: ClassVar[float] = 0.4
    velocity_tolerance: ClassVar[float] = 0.8
    #: least distance of goals and starts from the centre lines, in metres
    least_offset: ClassVar[float] = 3.0

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Places x, y, z in metres, ``[size, 3]``, in a random room each."""
        unit = torch.rand(size, 3, generator=generator, dtype=torch.float64)
        room = 2 * torch.randint(2, (size, 2), generator=generator) - 1
        low, high = AntFourRooms.goal_height
        return torch.cat([_offset(unit[:, :2]) * room, low + (high - low) * unit[:, 2:]], -1)

    def _draw_starts(self, goals: Tensor) -> Tensor:
        unit = torch.rand(len(goals), 2, generator=self._generator, dtype=goals.dtype)
        other = torch.randint(3, (len(goals),), generator=self._generator)
        room = torch.where(goals < 0, -1, 1) * torch.tensor([[-1, 1], [1, -1], [-1, -1]])[other]
        return _offset(unit) * room


def _offset(unit: Tensor) -> Tensor:
    """Numbers in [0, 1) as distances from the centre lines, in metres."""
    return AntFourRooms.least_offset + (AntFourRooms.goal_limit - AntFourRooms.least_offset) * unit
