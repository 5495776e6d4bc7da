"""What every task family of this package gives: its body, its tasks, its spaces and its episodes."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Unpack, cast

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv, EnvOptions
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary, draw_library

if TYPE_CHECKING:
    from mujoco.batch import Batch

OWN_ASSETS = Path(__file__).parents[1] / "assets"
"""The models of this package."""


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
    """

    version: ClassVar[int] = 1
    counts: ClassVar[TaskCounts]
    episode_steps: ClassVar[int]
    frame_skip: ClassVar[int]
    best_reward: ClassVar[float | None] = None
    goal_size: ClassVar[float | None] = None
    step_length: ClassVar[float | None] = None

    def __init__(
        self,
        num_envs: int,
        *,
        library: TaskLibrary | None = None,
        split: str = "train",
        tasks: Sequence[int] | Tensor | None = None,
        horizon: int | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        library = self.make_library() if library is None else library
        own = self.make_library(1, 1, 1).parameters.shape[1]
        if library.parameters.shape[1] != own:
            raise ValueError(f"library = {library}: the tasks of {type(self).__name__} have {own} parameters")
        model = self.make_model()
        spaces = self.make_spaces(model)
        super().__init__(
            model,
            library,
            num_envs=num_envs,
            tasks=library.split(split) if tasks is None else torch.as_tensor(tasks),
            horizon=self.episode_steps if horizon is None else horizon,
            frame_skip=self.frame_skip,
            observation_low=spaces.observation_low,
            observation_high=spaces.observation_high,
            goal_space=spaces.goal,
            subgoal_space=spaces.subgoal,
            **options,
        )

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

    @classmethod
    def make_spaces(cls, model: mujoco.MjModel) -> Spaces:
        """Bounds of the observation, and the spaces of goals and subgoals."""
        raise NotImplementedError
