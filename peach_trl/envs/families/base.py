"""What every task family of this package gives: its body, its tasks, its spaces and its episodes."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Unpack, cast

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv, EnvOptions
from peach_trl.envs.families.body_options import BodyOptions, turned
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary, draw_library
from peach_trl.modules.views import HeadingView, View

if TYPE_CHECKING:
    from mujoco.batch import Batch

OWN_ASSETS = Path(__file__).parents[1] / "assets"
"""The models of this package."""

WALKING = {"lower": "body", "top": "place", "context": "place"}
"""What the levels of a body read that walks: see :func:`walking_views`."""


class TaskCounts(NamedTuple):
    """How many tasks a family has for each purpose."""

    train: int
    validation: int
    test: int


class Spaces(NamedTuple):
    """What a family declares about its observations."""

    observation_low: Tensor  # [D], a bound that observations never pass; -inf where there is none
    observation_high: Tensor  # [D], likewise
    goal: GoalSpace | None  # when a task is achieved; None where tasks are no states to reach
    subgoal: GoalSpace  # what a higher level may ask of a lower one


class TaskFamily(BatchedMujocoEnv):
    """A family of tasks over one body: N rows, each playing a task of a fixed, versioned list.

    A subclass states the published values as class attributes and gives :meth:`make_model`, :meth:`draw_tasks`,
    :meth:`make_spaces` and the hooks of :class:`BatchedMujocoEnv`.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for the family's own.
        body: how the body is simulated, for families with a free one; ``None`` for what is published.
        options: ``observe_goal``, ``task_order``, ``threads``, ``seed`` and ``not_finite``, of
            :class:`BatchedMujocoEnv`.

    Attributes:
        version: of the list of tasks; it goes up whenever the same seed would give other tasks.
        counts: tasks of each split.
        episode_steps: the family's horizon, environment steps.
        frame_skip: simulation steps per environment step.
        best_reward: largest reward of a step, or where that says little, by how much rewards differ. This and the
            next two are what values by rule (:mod:`peach_trl.rules`) need; ``None`` where nothing useful can be said.
        goal_size: distance from a task's goal within which it is rewarded, in the units of the subgoal space.
        step_length: how far a step can lead along an axis, likewise.
        own_body: how the body is simulated by default; ``None`` for what the model says.
        reads: names of the views that ``"lower"`` levels, the ``"top"`` level and the ``"context"`` encoder read; what
            is not named reads all.
        views: views of the observation by name, those of :meth:`make_views`.
    """

    version: ClassVar[int] = 1
    counts: ClassVar[TaskCounts]
    episode_steps: ClassVar[int]
    frame_skip: ClassVar[int]
    best_reward: ClassVar[float | None] = None
    goal_size: ClassVar[float | None] = None
    step_length: ClassVar[float | None] = None
    own_body: ClassVar[BodyOptions | None] = None
    reads: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        num_envs: int,
        *,
        library: TaskLibrary | None = None,
        split: str = "train",
        tasks: Sequence[int] | Tensor | None = None,
        horizon: int | None = None,
        body: BodyOptions | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        library = self.make_library() if library is None else library
        own = self.make_library(1, 1, 1).parameters.shape[1]
        if library.parameters.shape[1] != own:
            raise ValueError(f"library = {library}: the tasks of {type(self).__name__} have {own} parameters")
        model = self.make_model()
        self.body = self.own_body if body is None else body
        if self.body is not None:
            self._set_body(model, self.body)
        spaces = self.make_spaces(model)
        super().__init__(
            model,
            library,
            num_envs=num_envs,
            tasks=library.split(split) if tasks is None else torch.as_tensor(tasks),
            horizon=self.episode_steps if horizon is None else horizon,
            frame_skip=self.frame_skip if self.body is None else self.body.substeps,
            observation_low=spaces.observation_low,
            observation_high=spaces.observation_high,
            goal_space=spaces.goal,
            subgoal_space=spaces.subgoal,
            **options,
        )
        self.views = self.make_views()

    def _set_body(self, model: mujoco.MjModel, body: BodyOptions) -> None:
        if model.njnt == 0 or model.jnt_type[0] != mujoco.mjtJoint.mjJNT_FREE:
            raise ValueError(f"body = {body}: {type(self).__name__} has no free body; set it to None")
        body.apply(model)
        self.fails = self.fails or body.fails

    @classmethod
    def make_library(
        cls, train: int | None = None, validation: int | None = None, test: int | None = None, seed: int = 0
    ) -> TaskLibrary:
        """The family's list of tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``.

        Args:
            train: number of training tasks; ``None`` for the family's own.
            validation: number of validation tasks, likewise.
            test: number of test tasks, likewise.
            seed: fixes all the tasks.
        """
        sizes = [own if n is None else n for n, own in zip((train, validation, test), cls.counts, strict=True)]
        name = f"{cls.__name__}-v{cls.version}"
        return draw_library(name, cls.draw_tasks, train=sizes[0], validation=sizes[1], test=sizes[2], seed=seed)

    # What subclasses give, besides the hooks of BatchedMujocoEnv.

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model."""
        raise NotImplementedError

    def make_views(self) -> dict[str, View]:
        """Views of the observation by name, beside ``"all"``."""
        return {}

    def _failed(self, observation: Tensor) -> Tensor:
        """Upside down, where the body's options call that a failure."""
        x, y = self._qpos[:, 4:6].T
        return torch.from_numpy(x * x + y * y > 0.5).unsqueeze(-1)

    def _after_reset(self, rows: np.ndarray) -> None:
        if self.body is not None and self.body.random_heading:
            angle = 2 * math.pi * torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
            qpos, qvel = self._qpos[rows], self._qvel[rows]
            turned(qpos, qvel, angle.numpy())
            self._qpos[rows], self._qvel[rows] = qpos, qvel

    def _bind(self, batch: Batch) -> None:
        self._qpos, self._qvel = batch.bind("qpos"), batch.bind("qvel")

    def _observe(self, out: np.ndarray) -> None:
        """All of ``qpos``, then all of ``qvel``; families that observe something else say what."""
        out[:, : self.model.nq], out[:, self.model.nq :] = self._qpos, self._qvel

    def _reward(self, observation: Tensor) -> Tensor:
        """1 where the task's goal is achieved, else 0; families that are rewarded otherwise say how."""
        return cast(GoalSpace, self.goal_space).achieved(observation, self._goal).unsqueeze(-1).float()

    @staticmethod
    def dense_reward(observation: Tensor, parameters: Tensor) -> Tensor:
        """A dense form of a sparse reward, ``[...]``, after steps to ``observation`` ``[..., D]``, for training only.

        Args:
            observation: where steps led.
            parameters: of their tasks, ``[..., P]``.

        Raises:
            NotImplementedError: in families that have none.
        """
        raise NotImplementedError

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """The parameters ``[size, P]`` of ``size`` tasks; not needed where :meth:`make_library` is overridden."""
        raise NotImplementedError

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """Bounds of the observation, and the spaces of goals and subgoals."""
        raise NotImplementedError


def walking_views(
    model: mujoco.MjModel,
    observation_dim: int,
    place: bool = True,
    pairs: Sequence[tuple[int, int]] = ((0, 1),),
) -> dict[str, View]:
    """Views of a free body whose observation begins with its state: as it feels itself, and where it is.

    Args:
        model: whose state begins with the free joint.
        observation_dim: entries of the observation, D: ``qpos``, ``qvel``, and whatever follows.
        place: whether ``qpos`` begins with x and y; else it begins with z.
        pairs: of a subgoal's numbers that are places or velocities along x and y.

    Returns:
        ``"body"``: a :class:`HeadingView` of height, joints and velocities; and with the place ``"place"``: x, y and
        the velocities along these axes.
    """
    z = 2 if place else 0
    velocity = model.nq - 2 + z
    joints = range(z + 5, velocity)
    others = [z, *joints, *range(velocity + 3, velocity + model.nv)]
    body = HeadingView(observation_dim, range(z + 1, z + 5), range(velocity, velocity + 3), others, pairs)
    return {"body": body} | ({"place": View(observation_dim, [0, 1, velocity, velocity + 1])} if place else {})
