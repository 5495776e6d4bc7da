"""A wind that nobody sees: the task is a term in the dynamics, and the goal is known."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import OWN_ASSETS, Spaces, TaskCounts
from peach_trl.envs.families.point_robot import PointRobot
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import square_goals

if TYPE_CHECKING:
    from mujoco.batch import Batch


class Wind(PointRobot):
    """A point that is always blown along, the same way throughout a task, and must get to and stay at a fixed place.

    ``Wind-v0`` of the recurrent baselines of Ni et al. 2022 (arXiv 2110.05038; code twni2016/pomdp-baselines,
    ``envs/meta/toy_navigation/wind.py``, ``configs/meta/wind``). What is as published:

    - observation: the position (x, y) in metres;
    - dynamics: the position moves by 0.1 m times the action and by the wind, exactly; there are no walls;
    - tasks: winds, uniform in [-0.08, 0.08] x [-0.08, 0.08] metres a step; 40 training and 20 test tasks;
    - start: the origin, always;
    - reward: 1 after each step that ends within 0.03 m of the place (0, 1), the same in all tasks, else 0;
    - episodes of 75 steps that never terminate; meta-tests of 1 episode.

    What is not: each split has one wind in each of as many equal rectangles as it has tasks, at a place drawn uniformly
    (see :func:`~peach_trl.envs.tasks.square_tasks`; of 20 winds drawn freely, two or five are too weak to matter), and
    there are 20 validation tasks besides. The source's encoder is given no rewards, as the position tells the wind;
    here beliefs have them as everywhere.

    A task is its wind and no state to reach: there is no goal space, and ``observe_goal`` shows the wind. The place to
    get to is :attr:`place`. Subgoals are positions, and wider than the place: who heads for one without knowing the
    wind comes to rest beside it, off by the wind, 0.06 m on average and 0.11 m at most.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s. A task's parameters are its wind along x and y, in
            metres a step.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for 75.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = Wind(num_envs=2, split="test", seed=0)
        >>> first = env.reset()["observation"]
        >>> moved = env.advance(torch.zeros(2, 2))[0]["observation"] - first
        >>> bool((moved == env.library.parameters[env.task_id]).all()), env.goal_space
        (True, None)
        >>> env.library
        TaskLibrary(Wind-v1: 80 tasks of 2 parameters; train: 40, validation: 20, test: 20)
    """

    counts = TaskCounts(40, 20, 20)
    episode_steps = 75
    goal_size = 0.03
    #: bound of the wind along an axis, in metres a step
    strongest: ClassVar[float] = 0.08
    #: where the reward is, x and y in metres, and how near counts
    place: ClassVar[tuple[float, float]] = (0.0, 1.0)
    place_radius: ClassVar[float] = 0.03

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model, of ``assets/point_robot.xml``, with the place drawn in."""
        spec = mujoco.MjSpec.from_file(str(OWN_ASSETS / "point_robot.xml"))
        size = [cls.place_radius] * 3
        spec.worldbody.add_site(name="place", pos=[*cls.place, 0.05], size=size, rgba=[0.0, 0.62, 0.45, 0.6])
        return spec.compile()

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Winds (x, y) in metres a step, ``[size, 2]``: one in each of ``size`` equal rectangles of their square."""
        return square_goals(size, generator, cls.strongest)

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """No bound on positions, no goals; subgoals within 0.1 m, up to 1.5 m from the start along each axis."""
        return super().make_spaces(model)._replace(goal=None, subgoal=GoalSpace([0, 1], -1.5, 1.5, 0.1, "euclidean"))

    def _bind(self, batch: Batch) -> None:
        super()._bind(batch)
        self._wind = np.zeros(self._qpos.shape)

    def _load_tasks(self, rows: np.ndarray) -> None:
        self._wind[rows] = self._goal[torch.from_numpy(rows)].numpy()

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        super()._simulate(batch, rows)
        if rows is None:
            np.add(self._qpos, self._wind, out=self._qpos)
        else:
            self._qpos[rows] += self._wind[rows]

    def _reset_state(self, rows: np.ndarray) -> None:
        pass  # the model's own state is the origin

    def _reward(self, observation: Tensor) -> Tensor:
        distance = self._distance(observation.numpy(), np.array(self.place, dtype=np.float32))
        return torch.from_numpy((distance <= self.place_radius).astype(np.float32))
