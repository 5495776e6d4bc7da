"""Meta-World's meta-learning benchmarks ML1 and ML10 (Yu et al. 2019, arXiv 1910.10897; package metaworld 3)."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv, TasksOptions
from peach_trl.envs.suites.extras import require_extra
from peach_trl.envs.tasks import TaskLibrary

_LONGEST = 500  # steps, after which Meta-World refuses to go on
_HAND = (0, 1, 2)  # entries of the observation: the hand's position, in metres
_OBJECT = (4, 5, 6)  # and the first object's
_GOALS = {"reach-v3": (_HAND, 0.05), "push-v3": (_OBJECT, 0.05), "pick-place-v3": (_OBJECT, 0.07)}
"""Which entries have to come how near to the task's target, in metres, for Meta-World to report success."""

_NOTE = (
    "metaworld 3.1.1 pins mujoco 3.3.0, on which this library's batched environments do not run: install it in a"
    " virtual environment of its own"
)


def meta_world(
    num_envs: int,
    *,
    benchmark: str = "ML1",
    task_name: str = "reach-v3",
    task_seed: int = 0,
    validation_goals: int = 10,
    horizon: int = _LONGEST,
    subgoal_tolerance: float = 0.05,
    library: TaskLibrary | None = None,
    split: str = "train",
    tasks: Sequence[int] | Tensor | None = None,
    **options: Unpack[TasksOptions],
) -> GymnasiumTasksEnv:
    """Meta-World's ML1 or ML10 as one environment of ``num_envs`` rows, any of which can play any of its tasks.

    The observation is Meta-World's, float32 ``[N, 39]`` with the goal's three entries zero: the hand's position (x, y,
    z) in metres, the gripper's opening in [0, 1], 14 entries of objects; these 18 again as of the step before; three
    zeros. Actions ``[N, 4]`` in [-1, 1] move the hand by up to 1 cm an axis and step, and close the gripper. The reward
    is Meta-World's dense one, in [0, 10]; ``"success"`` says whether a step ended in success. Episodes never terminate.

    Subgoals are positions of the hand, within the range in which Meta-World lets it move. Only the tasks
    ``reach-v3``, ``push-v3`` and ``pick-place-v3`` of ML1 have a goal space: there success is a distance between two
    points, the target and what the observation tells. For ``reach-v3`` that point is the middle of the fingers, 4.5 cm
    below the hand; goals are given for the hand, which agrees with Meta-World's success to 7 mm.

    Args:
        num_envs: number of rows, N.
        benchmark: ``"ML1"``, goals of one task, or ``"ML10"``, goals of 10 training and 5 other test tasks.
        task_name: the task of ML1, one of ``metaworld.ML1.ENV_NAMES``; ML10 has no use for it.
        task_seed: see :func:`meta_world_library`.
        validation_goals: likewise.
        horizon: environment steps until truncation, 500 at most.
        subgoal_tolerance: distance within which a subgoal is achieved, in metres; the default is the radius of most of
            Meta-World's targets.
        library: the tasks, from :func:`meta_world_library` with the same arguments, or a subset; ``None`` makes them.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        options: ``observe_goal``, ``task_order``, ``seed``, ``vectorization`` and ``not_finite`` of
            :class:`~peach_trl.envs.gymnasium_tasks.GymnasiumTasksEnv`.

    Raises:
        ImportError: if metaworld is missing.
        ValueError: for a benchmark or task that is unknown, or a horizon above 500.
    """
    suite = _suite(benchmark, task_name, task_seed)
    if horizon > _LONGEST:
        raise ValueError(f"horizon = {horizon}: Meta-World's episodes end after {_LONGEST} steps; lower horizon")
    return GymnasiumTasksEnv(
        partial(_MetaWorldEnv, suite.classes, suite.tasks),
        suite.library(validation_goals) if library is None else library,
        _set_task,
        num_envs=num_envs,
        horizon=horizon,
        split=split,
        tasks=tasks,
        goal_space=suite.goal_space,
        subgoal_space=GoalSpace(_HAND, *suite.reach, subgoal_tolerance, "euclidean"),
        success_key="success",
        **options,
    )


def meta_world_library(
    benchmark: str = "ML1", task_name: str = "reach-v3", task_seed: int = 0, validation_goals: int = 10
) -> TaskLibrary:
    """The tasks of ML1 or ML10 in the splits ``"train"``, ``"validation"`` and ``"test"``.

    Training and test tasks are the benchmark's own, 50 goals of each kind of task: other goals in ML1, other kinds of
    task in ML10. Meta-World knows no validation tasks; these are the last goals of each kind of its training tasks. The
    parameters of ``reach-v3``, ``push-v3`` and ``pick-place-v3`` are the goal (x, y, z) in metres, as in the goal
    space. For all others they are the vector that Meta-World draws for a task, places of objects and goals in metres,
    filled up with zeros, in ML10 after the number of the kind of task.

    Args:
        benchmark: ``"ML1"`` or ``"ML10"``.
        task_name: the task of ML1.
        task_seed: seed of the goals, >= 0. ML1 draws its test goals with ``task_seed + 1``: they are the training goals
            of that seed.
        validation_goals: training goals of each kind of task that are kept for validation, below 50; 0 for none.

    Raises:
        ImportError: if metaworld is missing.
        ValueError: for arguments out of range.
    """
    return _suite(benchmark, task_name, task_seed).library(validation_goals)


@dataclasses.dataclass(frozen=True)
class _Suite:
    """What a benchmark is made of.

    Attributes:
        classes: the class of environment of each kind of task.
        tasks: Meta-World's tasks, the training tasks first.
        train: number of training tasks.
        parameters: [tasks, P].
        goal_space: or None where success is not a matter of distance.
        reach: lowest and highest position of the hand, in metres.
    """

    classes: dict[str, Any]
    tasks: list[Any]
    train: int
    parameters: Tensor
    goal_space: GoalSpace | None
    reach: tuple[Tensor, Tensor]

    def library(self, validation_goals: int) -> TaskLibrary:
        train, validation = [], []
        kinds = [task.env_name for task in self.tasks[: self.train]]
        for kind in dict.fromkeys(kinds):
            ids = [number for number, name in enumerate(kinds) if name == kind]
            if not 0 <= validation_goals < len(ids):
                raise ValueError(f"validation_goals = {validation_goals}: must be in 0..{len(ids) - 1}")
            kept = len(ids) - validation_goals
            train, validation = train + ids[:kept], validation + ids[kept:]
        splits = {"train": train, "validation": validation, "test": list(range(self.train, len(self.tasks)))}
        return TaskLibrary(self.parameters, {name: torch.tensor(ids) for name, ids in splits.items() if ids})


@lru_cache(maxsize=8)
def _suite(benchmark: str, task_name: str, task_seed: int) -> _Suite:
    metaworld = require_extra("metaworld", "metaworld", _NOTE)
    if benchmark not in ("ML1", "ML10"):
        raise ValueError(f"benchmark = {benchmark!r}: must be 'ML1' or 'ML10'")
    if task_seed < 0:
        raise ValueError(f"task_seed = {task_seed}: must be >= 0")
    if benchmark == "ML1" and task_name not in metaworld.ML1.ENV_NAMES:
        raise ValueError(f"task_name = {task_name!r}: must be one of {', '.join(metaworld.ML1.ENV_NAMES)}")
    made = metaworld.ML1(task_name, seed=task_seed) if benchmark == "ML1" else metaworld.ML10(seed=task_seed)
    classes = {**made.train_classes, **made.test_classes}
    tasks = list(made.train_tasks) + list(made.test_tasks)
    copies = {name: kind() for name, kind in classes.items()}
    low = np.max([env.mocap_low for env in copies.values()], axis=0)
    high = np.min([env.mocap_high for env in copies.values()], axis=0)
    goal_space = None
    if benchmark == "ML1" and task_name in _GOALS:
        indices, tolerance = _GOALS[task_name]
        env = copies[task_name]
        hand_space = env.sawyer_observation_space
        goal_space = GoalSpace(indices, hand_space.low[:3], hand_space.high[:3], tolerance, "euclidean")
        parameters = torch.tensor(np.array([_goal(env, task, indices) for task in tasks]))
    else:
        parameters = _drawn_vectors(tasks, list(classes), with_kind=benchmark == "ML10")
    for env in copies.values():
        env.close()
    reach = (torch.tensor(low), torch.tensor(high))
    return _Suite(classes, tasks, len(made.train_tasks), parameters, goal_space, reach)


def _goal(env: Any, task: Any, indices: tuple[int, ...]) -> np.ndarray:
    """The target of ``task`` for the object, or for the hand, which stands above the fingers that have to reach it."""
    env.set_task(task)
    observation, _ = env.reset()
    target = env._target_pos.copy()
    return target + observation[:3] - env.tcp_center if indices == _HAND else target


def _drawn_vectors(tasks: list[Any], kinds: list[str], with_kind: bool) -> Tensor:
    vectors = [np.ravel(pickle.loads(task.data)["rand_vec"]) for task in tasks]
    parameters = torch.zeros(len(tasks), max(len(vector) for vector in vectors))
    for row, vector in zip(parameters, vectors, strict=True):
        row[: len(vector)] = torch.from_numpy(vector)
    if not with_kind:
        return parameters
    numbers = torch.tensor([[float(kinds.index(task.env_name))] for task in tasks])
    return torch.cat([numbers, parameters], dim=-1)


class _MetaWorldEnv(gymnasium.Env):
    """Any task of a benchmark: one simulation for each kind of task that was asked for so far."""

    def __init__(self, classes: dict[str, Any], tasks: list[Any]) -> None:
        self._classes, self._tasks = classes, tasks
        self._envs: dict[str, Any] = {}
        self.observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def set_task(self, number: int) -> None:
        task = self._tasks[number]
        if task.env_name not in self._envs:
            self._envs[task.env_name] = self._classes[task.env_name]()
        self._env = self._envs[task.env_name]
        self._env.set_task(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        # Not seeded: nothing is drawn once a task is set.
        return self._env.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._env.step(action)

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


def _set_task(env: gymnasium.Env, task: int) -> None:
    env.unwrapped.set_task(task)  # type: ignore[attr-defined]
