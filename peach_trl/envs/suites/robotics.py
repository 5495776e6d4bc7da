"""The mazes of Gymnasium-Robotics, PointMaze and AntMaze, with a hidden goal in each free cell."""

from __future__ import annotations

from collections.abc import Sequence
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

_RADIUS = 0.45  # metres between agent and goal within which these mazes count the goal as reached

Cell = tuple[int, int]


def robotics_maze(
    num_envs: int,
    *,
    env_id: str = "PointMaze_Medium-v3",
    start_cell: Cell | None = None,
    task_seed: int = 0,
    validation_tasks: int | None = None,
    test_tasks: int | None = None,
    horizon: int = 300,
    subgoal_tolerance: float = _RADIUS,
    library: TaskLibrary | None = None,
    split: str = "train",
    tasks: Sequence[int] | Tensor | None = None,
    **options: Unpack[TasksOptions],
) -> GymnasiumTasksEnv:
    """A maze of Gymnasium-Robotics as one environment of ``num_envs`` rows; each task hides the goal in another cell.

    The observation starts with the position (x, y) in metres; PointMaze goes on with the velocity, D = 4, AntMaze with
    the rest of the ant's state. The maze's ``desired_goal`` is left out. The reward is 1 after each step that ends
    within 0.45 m of the goal, else 0, or exp(-distance) for the ids with ``Dense``; ``"success"`` says whether it is
    within. Episodes never terminate: the goal stays where it is. Goals are centres of cells, and every episode starts
    in the centre of one cell, without the mazes' noise, so that a task is one goal.

    Goals and subgoals are positions (x, y), bounded by the maze's outline.

    Args:
        num_envs: number of rows, N.
        env_id: a PointMaze or AntMaze, such as ``"AntMaze_UMaze-v5"``.
        start_cell: see :func:`robotics_maze_library`.
        task_seed: likewise.
        validation_tasks: likewise.
        test_tasks: likewise.
        horizon: environment steps until truncation.
        subgoal_tolerance: distance within which a subgoal is achieved, in metres; the default is that of goals.
        library: the tasks, from :func:`robotics_maze_library` with the same arguments, or a subset; ``None`` makes
            them.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        options: ``observe_goal``, ``task_order``, ``seed``, ``vectorization`` and ``not_finite`` of
            :class:`~peach_trl.envs.gymnasium_tasks.GymnasiumTasksEnv`.

    Raises:
        ImportError: if gymnasium-robotics is missing.
        ValueError: for an id that is no such maze, a start in a wall, or too many tasks.
    """
    maze = _maze(env_id, start_cell, task_seed)
    if library is None:
        library = maze.library(validation_tasks, test_tasks)
    high = torch.full((maze.observation_size,), torch.inf)
    high[:2] = maze.half_size
    return GymnasiumTasksEnv(
        partial(_make_env, env_id, horizon),
        library,
        partial(_cells, maze.goal_cells, maze.start_cell),
        num_envs=num_envs,
        horizon=horizon,
        split=split,
        tasks=tasks,
        goal_space=GoalSpace([0, 1], -maze.half_size, maze.half_size, _RADIUS, "euclidean"),
        subgoal_space=GoalSpace([0, 1], -maze.half_size, maze.half_size, subgoal_tolerance, "euclidean"),
        observation_keys=_observation_keys(env_id),
        observation_low=-high,
        observation_high=high,
        success_key="success",
        **options,
    )


def robotics_maze_library(
    env_id: str = "PointMaze_Medium-v3",
    start_cell: Cell | None = None,
    task_seed: int = 0,
    validation_tasks: int | None = None,
    test_tasks: int | None = None,
) -> TaskLibrary:
    """A task for each free cell but the start, in the splits ``"train"``, ``"validation"`` and ``"test"``.

    The parameters are the goal (x, y) in metres. The cells are shuffled; the first are for testing, the next for
    validation, and the rest for training, so that the test goals do not depend on the other splits' sizes.

    Args:
        env_id: a PointMaze or AntMaze.
        start_cell: row and column of the cell where episodes start; ``None`` takes the free cell nearest to the top
            left, by rows.
        task_seed: seed of the shuffling, >= 0.
        validation_tasks: number of validation goals; ``None`` takes a quarter of all.
        test_tasks: number of test goals; ``None`` takes a quarter of all.

    Raises:
        ImportError: if gymnasium-robotics is missing.
        ValueError: for an id that is no such maze, a start in a wall, or too many tasks.
    """
    return _maze(env_id, start_cell, task_seed).library(validation_tasks, test_tasks)


class _Maze(NamedTuple):
    """What tasks are made of: ``goals`` [cells, 2] and the maze's outline, ``half_size`` [2], in metres."""

    goal_cells: list[Cell]
    start_cell: Cell
    goals: Tensor
    half_size: Tensor
    observation_size: int

    def library(self, validation_tasks: int | None, test_tasks: int | None) -> TaskLibrary:
        number = len(self.goal_cells)
        validation = max(1, number // 4) if validation_tasks is None else validation_tasks
        test = max(1, number // 4) if test_tasks is None else test_tasks
        if min(validation, test) < 1 or validation + test >= number:
            raise ValueError(
                f"validation_tasks = {validation}, test_tasks = {test}: this maze has {number} goals, and each split,"
                " training too, needs one at least"
            )
        ids = torch.arange(number)
        splits = {"train": ids[test + validation :], "validation": ids[test : test + validation], "test": ids[:test]}
        return TaskLibrary(self.goals, splits)


def _maze(env_id: str, start_cell: Cell | None, task_seed: int) -> _Maze:
    env = _make_env(env_id, 1)
    maze: Any = env.unwrapped.maze  # type: ignore[attr-defined]
    free = [(row, column) for row, line in enumerate(maze.maze_map) for column, cell in enumerate(line) if cell != 1]
    start = free[0] if start_cell is None else start_cell
    if start not in free:
        raise ValueError(f"start_cell = {start}: is no free cell of {env_id}; the free ones are {free}")
    cells = [cell for cell in free if cell != start]
    order = torch.randperm(len(cells), generator=named_generator("maze cells", task_seed))
    cells = [cells[index] for index in order.tolist()]
    goals = np.array([maze.cell_rowcol_to_xy(np.array(cell)) for cell in cells], dtype=np.float32)
    half_size = maze.maze_size_scaling / 2 * torch.tensor([float(maze.map_width), float(maze.map_length)])
    space: Any = env.observation_space
    size = sum(space[key].shape[0] for key in _observation_keys(env_id))
    env.close()
    return _Maze(cells, start, torch.from_numpy(goals), half_size, size)


def _observation_keys(env_id: str) -> tuple[str, ...]:
    """The parts of the observation, position first: the point's "observation" starts with it, the ant's lacks it."""
    return ("observation",) if env_id.startswith("PointMaze") else ("achieved_goal", "observation")


def _make_env(env_id: str, horizon: int) -> gymnasium.Env:
    if not env_id.startswith(("PointMaze_", "AntMaze_")):
        raise ValueError(f"env_id = {env_id!r}: must be a PointMaze or an AntMaze, such as 'PointMaze_Medium-v3'")
    robotics = require_extra("gymnasium_robotics", "robotics")
    gymnasium.register_envs(robotics)
    env = gymnasium.make(
        env_id, max_episode_steps=horizon, continuing_task=True, reset_target=False, disable_env_checker=True
    )
    env.unwrapped.position_noise_range = 0.0  # type: ignore[attr-defined]
    return env


def _cells(goals: list[Cell], start: Cell, env: gymnasium.Env, task: int) -> dict[str, Any]:
    return {"goal_cell": np.array(goals[task]), "reset_cell": np.array(start)}
