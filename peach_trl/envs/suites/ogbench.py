"""The mazes of OGBench, pointmaze and antmaze (Park et al. 2025, arXiv 2410.20092), with the goal hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Unpack

import gymnasium
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv, TasksOptions
from peach_trl.envs.suites.extras import require_extra
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.seeding import named_generator

Cell = tuple[int, int]


def ogbench_maze(
    num_envs: int,
    *,
    env_id: str = "pointmaze-medium-v0",
    task_seed: int = 0,
    validation_tasks: int | None = None,
    horizon: int = 1000,
    terminate_at_goal: bool = False,
    subgoal_tolerance: float | None = None,
    library: TaskLibrary | None = None,
    split: str = "train",
    tasks: Sequence[int] | Tensor | None = None,
    **options: Unpack[TasksOptions],
) -> GymnasiumTasksEnv:
    """A maze of OGBench as one environment of ``num_envs`` rows; each task has a start and a hidden goal.

    The observation is OGBench's: the position (x, y) in metres, and for the ant the rest of its joint positions and
    velocities, D = 2 or 29. The reward is 1 after each step that ends at the goal, within 1 m for the point and 0.5 m
    for the ant, else 0; ``"success"`` says the same. Goals are centres of cells, without OGBench's noise, so that a
    task is one goal; starts keep theirs, up to 1 m an axis.

    Goals and subgoals are positions (x, y), bounded by the maze's outline.

    Args:
        num_envs: number of rows, N.
        env_id: one of OGBench's ids ``pointmaze-*-v0`` and ``antmaze-*-v0`` without ``singletask``; not that of a data
            set, which has ``navigate`` in it.
        task_seed: see :func:`ogbench_maze_library`.
        validation_tasks: likewise.
        horizon: environment steps until truncation; OGBench has 1000.
        terminate_at_goal: whether reaching the goal ends the episode, as in OGBench's own evaluation. Otherwise the
            return tells how long a policy was there.
        subgoal_tolerance: distance within which a subgoal is achieved, in metres; ``None`` takes that of goals.
        library: the tasks, from :func:`ogbench_maze_library` with the same arguments, or a subset; ``None`` makes
            them.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        options: ``observe_goal``, ``task_order``, ``seed``, ``vectorization`` and ``not_finite`` of
            :class:`~peach_trl.envs.gymnasium_tasks.GymnasiumTasksEnv`.

    Raises:
        ImportError: if ogbench is missing.
        ValueError: for an id that is no such maze, or too many validation tasks.
    """
    maze = _maze(env_id, task_seed)
    if library is None:
        library = maze.library(validation_tasks)
    low, high = (torch.full((maze.observation_size,), sign * torch.inf) for sign in (-1, 1))
    low[:2], high[:2] = maze.low, maze.high
    tolerance = maze.goal_tolerance if subgoal_tolerance is None else subgoal_tolerance
    return GymnasiumTasksEnv(
        partial(_make_env, env_id, horizon, terminate_at_goal),
        library,
        partial(_start_and_goal, maze.starts_and_goals),
        num_envs=num_envs,
        horizon=horizon,
        split=split,
        tasks=tasks,
        goal_space=GoalSpace([0, 1], maze.low, maze.high, maze.goal_tolerance, "euclidean"),
        subgoal_space=GoalSpace([0, 1], maze.low, maze.high, tolerance, "euclidean"),
        observation_low=low,
        observation_high=high,
        success_key="success",
        **options,
    )


def ogbench_maze_library(
    env_id: str = "pointmaze-medium-v0", task_seed: int = 0, validation_tasks: int | None = None
) -> TaskLibrary:
    """OGBench's own tasks as the split ``"test"``, and other goals as ``"train"`` and ``"validation"``.

    The parameters are the goal (x, y) in metres. OGBench evaluates on five pairs of start and goal for each maze, some
    of which share a goal. The other splits have one task for each free cell that is no test goal, disjoint, in an order
    that ``task_seed`` shuffles, the validation goals first; a task's start is another free cell, drawn with it.

    Args:
        env_id: one of OGBench's ids ``pointmaze-*-v0`` and ``antmaze-*-v0``.
        task_seed: seed of the shuffling and of the starts, >= 0.
        validation_tasks: number of validation goals; ``None`` takes a quarter of the goals that are not for testing.

    Raises:
        ImportError: if ogbench is missing.
        ValueError: for an id that is no such maze, or too many validation tasks.
    """
    return _maze(env_id, task_seed).library(validation_tasks)


class _Maze(NamedTuple):
    """What tasks are made of, test tasks first; ``goals`` [tasks, 2] and the maze's outline [2] are in metres."""

    starts_and_goals: list[tuple[Cell, Cell]]
    test_tasks: int
    goals: Tensor
    low: Tensor
    high: Tensor
    goal_tolerance: float
    observation_size: int

    def library(self, validation_tasks: int | None) -> TaskLibrary:
        others = len(self.goals) - self.test_tasks
        validation = max(1, others // 4) if validation_tasks is None else validation_tasks
        if not 1 <= validation < others:
            raise ValueError(f"validation_tasks = {validation}: must be in 1..{others - 1} for this maze")
        ids, first = torch.arange(len(self.goals)), self.test_tasks + validation
        splits = {"train": ids[first:], "validation": ids[self.test_tasks : first], "test": ids[: self.test_tasks]}
        return TaskLibrary(self.goals, splits)


def _maze(env_id: str, task_seed: int) -> _Maze:
    env = _make_env(env_id, 1, False)
    maze: Any = env.unwrapped
    own = [(tuple(info["init_ij"]), tuple(info["goal_ij"])) for info in maze.task_infos]
    free = [(int(row), int(column)) for row, column in np.argwhere(maze.maze_map == 0)]
    generator = named_generator("ogbench tasks", task_seed)
    goals = [cell for cell in free if cell not in {goal for _, goal in own}]
    tasks = list(own)
    for index in torch.randperm(len(goals), generator=generator).tolist():
        starts = [cell for cell in free if cell != goals[index]]
        tasks.append((starts[int(torch.randint(len(starts), (), generator=generator))], goals[index]))
    centres = torch.tensor([maze.ij_to_xy(goal) for _, goal in tasks], dtype=torch.float32)
    corners = [maze.ij_to_xy(cell) for cell in ((0, 0), (maze.maze_map.shape[0] - 1, maze.maze_map.shape[1] - 1))]
    low, high = torch.tensor(corners, dtype=torch.float32) + maze._maze_unit / 2 * torch.tensor([[-1.0], [1.0]])
    size = int(np.prod(maze.observation_space.shape))
    env.close()
    return _Maze(tasks, len(own), centres, low, high, float(maze._goal_tol), size)


def _make_env(env_id: str, horizon: int, terminate_at_goal: bool) -> gymnasium.Env:
    if not env_id.startswith(("pointmaze-", "antmaze-")) or "singletask" in env_id or "navigate" in env_id:
        raise ValueError(
            f"env_id = {env_id!r}: must be an OGBench maze such as 'pointmaze-medium-v0', 'antmaze-large-v0'"
        )
    require_extra("ogbench", "ogbench")
    env = gymnasium.make(
        env_id,
        max_episode_steps=horizon,
        disable_env_checker=True,
        terminate_at_goal=terminate_at_goal,
        add_noise_to_goal=False,
    )
    return _OwnNumpyRandom(env)


class _OwnNumpyRandom(gymnasium.Wrapper):
    """Keeps an environment that draws from numpy's global generator apart: a state of its own, set by its seed."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._state = np.random.RandomState().get_state()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._state = np.random.RandomState(seed).get_state()
        with self._swapped():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with self._swapped():
            return self.env.step(action)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        outside = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(outside)


def _start_and_goal(tasks: list[tuple[Cell, Cell]], env: gymnasium.Env, task: int) -> dict[str, Any]:
    start, goal = tasks[task]
    return {"task_info": {"init_ij": start, "goal_ij": goal}}
