"""A point that must find a goal it is not shown: the smallest task family with sparse rewards."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack, cast

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.config import MANY, ConfigError, option
from peach_trl.defaults import default
from peach_trl.envs.batched_mujoco import BatchedMujocoEnv, EnvOptions
from peach_trl.envs.errors import NOT_FINITE
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary, circle_tasks, half_circle_tasks, square_tasks
from peach_trl.rules import TaskFacts

if TYPE_CHECKING:
    from mujoco.batch import Batch

#: where goals lie, by the name in the configuration
GOALS = {"half_circle": half_circle_tasks, "circle": circle_tasks, "square": square_tasks}
SUBGOALS = ("place", "state")
_TIME_CONSTANT = 2.0  # of the velocity, in environment steps
_VELOCITY_SLACK = 1.05  # bound of the velocity over the top speed
_VELOCITY_TOLERANCE = 0.4  # of a subgoal that is a whole state, likewise


@dataclasses.dataclass(frozen=True)
class PointConfig:
    """What defines the point's world and its tasks; the values live in YAML."""

    arena: float = option(above=0, help="half-width of the square arena, in metres")
    horizon: int = option(low=1, high=10**6, help="environment steps per episode")
    goals: str = option(choices=tuple(GOALS), help="where goals lie, around the start")
    radius: float = option(above=0, help="radius of the circle of goals, or half-width of their square, in metres")
    goal_tolerance: float = option(above=0, help="distance from the goal within which the reward is 1, in metres")
    subgoals: str = option(choices=SUBGOALS, help="a place (x, y), or a whole state (x, y, vx, vy)")
    subgoal_tolerance: float = option(above=0, help="distance within which a subgoal is achieved, in metres")
    speed: float = option(above=0, help="top speed along each axis, in metres per environment step")
    frame_skip: int = option(
        low=2, high=1000, help="simulation steps of 0.02 s per environment step; 1 would be too coarse"
    )
    train_tasks: int = option(low=1, high=MANY, help="number of training tasks")
    validation_tasks: int = option(low=1, high=MANY, help="number of validation tasks")
    test_tasks: int = option(low=1, high=MANY, help="number of test tasks")
    task_seed: int = option(low=0, high=2**62, help="seed of the goals, apart from the seed of the run")
    threads: int = option(low=1, high=1024, help="threads that step the simulations; results do not depend on it")
    not_finite: str = option(choices=NOT_FINITE, help="what a row whose simulation breaks does")

    def __post_init__(self) -> None:
        """Checks what involves several fields."""
        if self.radius > self.arena - self.speed:
            raise ConfigError(
                f"radius = {self.radius}: goals must be within reach, <= arena - speed = {self.arena - self.speed};"
                " lower radius or raise arena"
            )

    def facts(self) -> TaskFacts:
        """What values by rule need to know of the tasks."""
        return TaskFacts(self.horizon, 1.0, self.goal_tolerance, self.speed)

    has_dense_reward: ClassVar[bool] = True

    def dense_reward(self, observation: Tensor, parameters: Tensor) -> Tensor:
        """Minus the distance from the goal as a share of the arena's half-width, ``[...]``, for training only."""
        return -torch.linalg.vector_norm(observation[..., :2] - parameters, dim=-1) / self.arena

    def make_library(self) -> TaskLibrary:
        """The tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``."""
        return PointEnv.make_library(self)

    def make_env(self, library: TaskLibrary, tasks: Tensor, *, observe_goal: bool, seed: int) -> PointEnv:
        """One row for each of ``tasks`` [N]."""
        return PointEnv(
            self,
            len(tasks),
            library=library,
            tasks=tasks,
            observe_goal=observe_goal,
            seed=seed,
            not_finite=self.not_finite,  # type: ignore[arg-type]
        )


class PointEnv(BatchedMujocoEnv):
    """A point mass in a square arena; each task hides a goal, on a half circle around the start, say.

    Goals lie where ``config.goals`` says: on a ``"half_circle"`` or a ``"circle"`` of ``config.radius``, or anywhere in
    a ``"square"`` of that half-width. This world is this package's own.

    The observation is (x, y, vx, vy), positions in metres and velocities in metres per environment step. The action
    is a force along x and y in [-1, 1]; held at 1 it brings the point to ``config.speed`` along that axis, with a time
    constant of 2 environment steps. The reward is 1.0 after each step that ends within ``config.goal_tolerance`` of
    the goal, else 0.0. Episodes start at rest at the origin, never terminate, and are truncated at ``config.horizon``.

    The limits of the joints are soft: the point passes them by up to ``config.speed / frame_skip``. They stand
    ``config.speed`` inside the arena, so that positions never pass ``config.arena``, the bound of the observation
    spec. Velocities stay within ``config.speed``; the spec's bound is 5 % above.

    Subgoals are places (x, y) within ``config.subgoal_tolerance``. With ``config.subgoals="state"`` they are whole
    states, each entry within its own tolerance: the same one in metres, and .4 of the top speed.

    Args:
        config: the world and its tasks; ``None`` for the default task, see :func:`~peach_trl.defaults.default`.
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        options: ``observe_goal``, ``task_order``, ``seed`` and ``not_finite`` of :class:`BatchedMujocoEnv`.

    Examples:
        >>> config = PointConfig(
        ...     arena=10.0, horizon=200, goals="half_circle", radius=8.0, goal_tolerance=2.5, subgoals="place",
        ...     subgoal_tolerance=0.5, speed=0.25, frame_skip=5, train_tasks=30, validation_tasks=15, test_tasks=15,
        ...     task_seed=0, threads=1, not_finite="raise",
        ... )
        >>> env = PointEnv(config, num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, rollout["task_id"][:, 0, 0]
        (torch.Size([4, 3, 4]), tensor([0, 1, 2, 3]))
        >>> from tensordict import TensorDict
        >>> env.reset(TensorDict(task_id=torch.tensor([7, 7, 7, 7]), batch_size=[4]))["task_id"][:, 0]
        tensor([7, 7, 7, 7])
        >>> PointEnv(num_envs=2).rollout(3)["observation"].shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        config: PointConfig | None = None,
        num_envs: int = 1,
        *,
        library: TaskLibrary | None = None,
        split: str = "train",
        tasks: Sequence[int] | Tensor | None = None,
        horizon: int | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        config = default(PointConfig) if config is None else config
        library = self.make_library(config) if library is None else library
        if library.parameters.shape[1] != 2:
            raise ValueError(f"library = {library}: the point's tasks have 2 parameters, the goal's x and y")
        arena, fastest = config.arena, _VELOCITY_SLACK * config.speed
        high = torch.tensor([arena, arena, fastest, fastest])
        super().__init__(
            _build_model(config),
            library,
            num_envs=num_envs,
            tasks=library.split(split) if tasks is None else torch.as_tensor(tasks),
            horizon=config.horizon if horizon is None else horizon,
            frame_skip=config.frame_skip,
            observation_low=-high,
            observation_high=high,
            goal_space=GoalSpace([0, 1], -arena, arena, config.goal_tolerance, "euclidean"),
            subgoal_space=_subgoal_space(config, high),
            **{"threads": config.threads, **options},
        )
        self.config = config

    @staticmethod
    def make_library(config: PointConfig) -> TaskLibrary:
        """The tasks of ``config``, in the splits ``"train"``, ``"validation"`` and ``"test"``."""
        make = GOALS[config.goals]
        return make(config.radius, config.train_tasks, config.validation_tasks, config.test_tasks, config.task_seed)

    def _bind(self, batch: Batch) -> None:
        self._qpos, self._qvel = batch.bind("qpos"), batch.bind("qvel")
        self._velocity = np.empty_like(self._qvel)

    def _observe(self, out: np.ndarray) -> None:
        out[:, :2] = self._qpos
        np.multiply(self._qvel, self.dt, out=self._velocity)
        out[:, 2:] = self._velocity

    def _reward(self, observation: Tensor) -> Tensor:
        return cast(GoalSpace, self.goal_space).achieved(observation, self._goal).unsqueeze(-1).float()

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array([goal[0], goal[1], 0.25])


def _subgoal_space(config: PointConfig, high: Tensor) -> GoalSpace:
    if config.subgoals == "place":
        return GoalSpace([0, 1], -config.arena, config.arena, config.subgoal_tolerance, "euclidean")
    tolerance = [config.subgoal_tolerance] * 2 + [_VELOCITY_TOLERANCE * config.speed] * 2
    return GoalSpace(range(4), -high, high, tolerance, "box", places=2)


def _build_model(config: PointConfig) -> mujoco.MjModel:
    """The model of ``assets/point.xml`` with the arena, the speed and the time constant of ``config``."""
    spec = mujoco.MjSpec.from_file(str(Path(__file__).parent / "assets" / "point.xml"))
    seconds = config.frame_skip * spec.option.timestep
    damping = 1.0 / (_TIME_CONSTANT * seconds)  # the point's mass is 1 kg
    limit = config.arena - config.speed
    for axis in ("x", "y"):
        joint = spec.joint(axis)
        joint.range = [-limit, limit]
        joint.damping = [damping, 0.0, 0.0] if np.ndim(joint.damping) else damping
        spec.actuator(axis).gear = [damping * config.speed / seconds, 0, 0, 0, 0, 0]
    edge = config.arena + 0.1
    spec.geom("floor").size = [edge, edge, 1.0]
    for name, x, y in (("east", 1, 0), ("west", -1, 0), ("north", 0, 1), ("south", 0, -1)):
        wall = spec.geom(f"wall_{name}")
        wall.pos = [x * edge, y * edge, 0.3]
        wall.size = [0.1 if x else edge, 0.1 if y else edge, 0.3]
    return spec.compile()
