"""Ants that must find a hidden place: our own half circle, and two published ones."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.ant import Ant, AntGoal
from peach_trl.envs.families.base import TaskCounts
from peach_trl.envs.families.bodies import column
from peach_trl.envs.families.body_options import FAST, GYMNASIUM, BodyOptions
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.point import PointConfig, PointEnv
from peach_trl.envs.tasks import TaskLibrary, half_circle_goals


class AntHalfCircle(Ant):
    """An ant that must find a place on a half circle around its start; every step near it is worth 1.

    This family is our own: the default task with a body. A task is a place (x, y) on the half circle with y >= 0, 2.5 m
    from the start. The reward of a step is 1 where the torso ends within 0.75 m of it, else 0. An episode has 200
    steps, and ends in failure once the torso is upside down. 60 training, validation and test tasks.

    The ant is that of ``FAST``: a fifth of gymnasium's torque, 0.1 s an environment step, no contact forces; it starts
    with a random heading. It walks half a metre a second. The observation is ``qpos`` (15) and ``qvel`` (14).

    Views: ``"body"``, the ant as it feels itself, for goal-reaching levels, and ``"place"``, x, y and their velocities,
    for the top level and the encoder. Subgoals are places (x, y), within 0.4 m, up to twice the radius away.

    What can be had is known of a point that moves 0.05 m along each axis a step, from the first step on
    (:meth:`stand_in`): a bound, as the ant walks that fast in one direction, and has to turn first.

    Args:
        num_envs: number of rows, N.
        radius: of the half circle, in metres; ``None`` for 2.5.
        goal_tolerance: distance from a goal within which there are rewards, in metres; ``None`` for 0.75.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = AntHalfCircle(num_envs=2, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, env.views["body"].dim, env.views["place"].dim, env.dt
        (torch.Size([2, 3, 29]), 26, 4, 0.1)
    """

    counts = TaskCounts(60, 60, 60)
    episode_steps = 200
    positions = True
    falls = False
    control_weight = contact_weight = 0.0
    best_reward = 1.0
    own_body = FAST
    reads = AntGoal.reads
    #: metres
    radius: ClassVar[float] = 2.5
    goal_size: ClassVar[float] = 0.75
    subgoal_tolerance: ClassVar[float] = 0.4
    stride: ClassVar[float] = 0.05  # how far it walks in a step
    step_length = stride

    def __init__(
        self,
        num_envs: int,
        *,
        radius: float | None = None,
        goal_tolerance: float | None = None,
        library: TaskLibrary | None = None,
        **options: Any,
    ) -> None:
        self.goal_radius = type(self).radius if radius is None else radius
        self.goal_tolerance = self.goal_size if goal_tolerance is None else goal_tolerance
        library = self.make_library(radius=self.goal_radius) if library is None else library
        super().__init__(num_envs, library=library, **options)

    @classmethod
    def make_library(
        cls,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
        radius: float | None = None,
    ) -> TaskLibrary:
        """See :meth:`TaskFamily.make_library`; with another ``radius``, in metres, the same directions."""
        library = super().make_library(train, validation, test, seed)
        if radius is None or radius == cls.radius:
            return library
        splits = {name: library.split(name) for name in TaskCounts._fields}
        return TaskLibrary(library.parameters * (radius / cls.radius), splits, library.name)

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Places (x, y), ``[size, 2]``, metres: one in each of ``size`` equal arcs."""
        return half_circle_goals(size, generator, cls.radius)

    def _make_goal_spaces(self, velocity: int) -> tuple[GoalSpace, GoalSpace]:
        far, near = 2 * self.goal_radius, self.goal_radius
        goal = GoalSpace([0, 1], -near, near, self.goal_tolerance, "euclidean")
        return goal, GoalSpace([0, 1], -far, far, self.subgoal_tolerance, "euclidean")

    def stand_in(self) -> PointEnv | None:
        """A point that moves as far along each axis in a step as the ant walks in one direction, at once.

        Of other rewards and bodies, nothing of the kind is known.
        """
        if type(self) is not AntHalfCircle or self.body != FAST:
            return None
        config = PointConfig(
            arena=4 * self.goal_radius,
            horizon=self.horizon,
            goals="half_circle",
            radius=self.goal_radius,
            goal_tolerance=self.goal_tolerance,
            subgoals="place",
            subgoal_tolerance=self.subgoal_tolerance,
            speed=self.stride,
            frame_skip=2,
            train_tasks=1,
            validation_tasks=1,
            test_tasks=1,
            task_seed=0,
            threads=1,
            not_finite="raise",
        )
        return PointEnv(config, self.batch_size[0], library=self.library, tasks=self.task_id)

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array([goal[0], goal[1], 0.0])

    def _distance(self) -> np.ndarray:
        """Of the torso from the goal, [N], metres."""
        return np.linalg.norm(self._qpos[:, :2] - self._goal.numpy(), axis=-1)

    def _reward(self, observation: Tensor) -> Tensor:
        return column((self._distance() <= self.goal_tolerance) - self._costs())


class AntSemiCircleSparse(AntHalfCircle):
    """An ant that must find a place on a half circle of 1 m around its start.

    ``AntSemiCircleSparse-v0`` of BOReL (Dorfman et al. 2021, arXiv 2008.02598; code Rondorf/BOReL,
    ``environments/mujoco/ant_semicircle.py``). As published: reward 1 after each step that ends within 0.2 m of the
    goal, less 0.1 times the sum of the squared actions; 200 steps, which never terminate; meta-tests of 2 episodes; 80
    training and 20 test tasks; an observation without contact forces; the start is the origin, at rest.

    Different: gymnasium's body, with costs of controls instead of actions, which are the same; goals one in each of as
    many equal arcs, and 20 validation tasks. The source's training starts episodes elsewhere, too; here none do.

    Examples:
        >>> env = AntSemiCircleSparse(num_envs=2, seed=0)
        >>> env.rollout(2)["observation"].shape, env.dt
        (torch.Size([2, 2, 29]), 0.05)
    """

    counts = TaskCounts(80, 20, 20)
    control_weight = 0.1
    step_length = None
    own_body = BodyOptions("rk4", 5, 1.0, contact_forces=False, random_heading=False, fails=False)
    reset_noise = 0.0
    radius = 1.0
    goal_size = 0.2
    subgoal_tolerance = 0.2


class AntGoalSparse(AntHalfCircle):
    """An ant that must find a place in a disc around its start.

    ``AntGoalSparse-v0`` of HyperX (Zintgraf et al. 2021, arXiv 2010.01062; code lmzintgraf/hyperx,
    ``environments/mujoco/ant_goal.py``). As published: goals uniform in the disc of 3 m; reward 1 less the distance d
    where that is at most 0.75 m, else -0.75, less 0.01 times the sum of the squared actions and 5e-4 times that of the
    contact forces; 200 steps, which never terminate; meta-tests of 6 episodes.

    Different: gymnasium's body and observation (the source has the torso's place twice), and a fixed list of tasks.

    Examples:
        >>> env = AntGoalSparse(num_envs=2, seed=0)
        >>> env.rollout(2)["next", "reward"].amax() < -0.7
        tensor(True)
    """

    control_weight, contact_weight = 0.01, Ant.contact_weight
    step_length = None
    own_body = GYMNASIUM
    radius = 3.0

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Places (x, y), ``[size, 2]``, metres."""
        return AntGoal.draw_tasks(size, generator)

    def _reward(self, observation: Tensor) -> Tensor:
        distance = self._distance()
        near = distance <= self.goal_tolerance
        return column(np.where(near, 1 - distance, -self.goal_tolerance) - self._costs())
