"""Mazes with hidden goals: a ball and an ant, in a small, a medium and a large maze."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np
import torch

from peach_trl.envs.families.base import OWN_ASSETS, WALKING, Spaces, TaskCounts, TaskFamily, walking_views
from peach_trl.envs.families.bodies import ASSETS
from peach_trl.envs.families.maze_layouts import LARGE_MAZE, MEDIUM_MAZE, U_MAZE, MazeLayout
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.modules.views import View
from peach_trl.seeding import named_generator

_TOLERANCE = 0.45  # metres, in mazes of every scale, as in gymnasium-robotics
_GOAL_NOISE = 0.25  # of a cell, to either side, likewise
_WALL_COLOUR = [0.35, 0.35, 0.45, 1.0]


class MazeFamily(TaskFamily):
    """A body in a maze that must find the cell of a goal; what :class:`PointMaze` and :class:`AntMaze` share.

    In the tradition of D4RL (Fu et al. 2020, arXiv 2004.07219) as kept up by gymnasium-robotics
    (``gymnasium_robotics/envs/maze``), from which these values are: the size of cells and walls, a goal's noise of a
    quarter cell to either side of its cell's middle, the reward of 1 within 0.45 m of the goal and 0 elsewhere, and
    the horizons. The maps of the medium and the large maze are this package's own, of the same size.

    A task is a goal cell: ``library.parameters`` are the goal's x and y in metres, with the noise in them. The seed
    deals the free cells out to the splits, so that no cell has goals of two splits. Episodes start in the one start
    cell of the map, whichever the task, so that the start tells nothing of a hidden goal; they never terminate.

    The observation is all of ``qpos``, which starts with x and y, and then all of ``qvel``. Goals and subgoals are
    places (x, y) between the outer walls, which positions never leave; they may lie in an inner wall.

    A maze of one's own is a subclass with another ``layout``, and ``counts`` that add up to its cells for goals.

    Attributes:
        layout: the map.
        cell: width of a cell, metres.
        wall_height: metres.
        position_noise: half-width of the uniform noise on each entry of ``qpos`` at resets.
        velocity_noise: standard deviation of the normal noise on each entry of ``qvel`` at resets.
    """

    layout: ClassVar[MazeLayout]
    cell: ClassVar[float]
    wall_height: ClassVar[float]
    position_noise: ClassVar[float]
    velocity_noise: ClassVar[float]

    @classmethod
    def make_library(
        cls, train: int | None = None, validation: int | None = None, test: int | None = None, seed: int = 0
    ) -> TaskLibrary:
        """The family's list of tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``.

        A split's size changes neither its other tasks nor another split's.

        Args:
            train: number of training tasks, at most the family's own; ``None`` for all of these.
            validation: number of validation tasks, likewise.
            test: number of test tasks, likewise.
            seed: fixes which cells are whose, and where in them the goals lie.

        Raises:
            ValueError: when a split, or the class's ``counts``, would have more tasks than there are cells.
        """
        goals = cls.layout.goals
        if sum(cls.counts) > len(goals):
            raise ValueError(
                f"counts = {tuple(cls.counts)}: {cls.__name__} has {len(goals)} cells for goals, one task in each:"
                " lower the counts, or use a larger maze"
            )
        order = torch.randperm(len(goals), generator=named_generator("tasks/cells", seed)).numpy()
        parameters, splits, first_cell, first_id = [], {}, 0, 0
        sizes = zip(cls.counts._fields, cls.counts, (train, validation, test), strict=True)
        for split, own, size in sizes:
            size = own if size is None else size
            if not 1 <= size <= own:
                raise ValueError(
                    f"{split} = {size}: {cls.__name__} has {len(goals)} cells for goals, of which {own} are for this"
                    f" split, one task in each: give 1 to {own}, or use a larger maze"
                )
            within = torch.rand(own, 2, generator=named_generator(f"tasks/{split}", seed), dtype=torch.float64)
            noise = _GOAL_NOISE * (2 * within.numpy() - 1)
            cells = goals[order[first_cell : first_cell + own]]
            parameters.append((cls.layout.centres(cells, cls.cell) + cls.cell * noise)[:size])
            splits[split] = torch.arange(first_id, first_id + size)
            first_cell, first_id = first_cell + own, first_id + size
        return TaskLibrary(torch.from_numpy(np.concatenate(parameters)), splits, f"{cls.__name__}-v{cls.version}")

    @classmethod
    def make_body(cls) -> mujoco.MjSpec:
        """The body without the maze, with its start at the start cell."""
        raise NotImplementedError

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model: the body and the walls of the layout."""
        spec = cls.make_body()
        half = cls.wall_height / 2
        for wall in cls.layout.walls():
            last = (wall.row + wall.rows - 1, wall.column + wall.columns - 1)
            x, y = cls.layout.centres(np.array([(wall.row, wall.column), last]), cls.cell).mean(0)
            spec.worldbody.add_geom(
                name=f"wall_{wall.row}_{wall.column}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[x, y, half],
                size=[cls.cell * wall.columns / 2, cls.cell * wall.rows / 2, half],
                contype=1,  # the ant's default is to collide with the floor only
                conaffinity=1,
                rgba=_WALL_COLOUR,
            )
        return spec.compile()

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """Places between the outer walls, goals and subgoals reached within 0.45 m; no bound on the rest."""
        extent = torch.tensor(self.layout.half_extent(self.cell), dtype=torch.float32)
        high = torch.full((model.nq + model.nv,), torch.inf)
        high[:2] = extent
        goal = GoalSpace([0, 1], -extent, extent, _TOLERANCE, "euclidean")
        return Spaces(observation_low=-high, observation_high=high, goal=goal, subgoal=goal)

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`; half as high as the walls."""
        return np.array([goal[0], goal[1], self.wall_height / 2])

    def _reset_state(self, rows: np.ndarray) -> None:
        places, speeds = (len(rows), self.model.nq), (len(rows), self.model.nv)
        uniform = 2 * torch.rand(places, generator=self._generator, dtype=torch.float64) - 1
        normal = torch.randn(speeds, generator=self._generator, dtype=torch.float64)
        self._qpos[rows] += self.position_noise * uniform.numpy()
        self._qvel[rows] = self.velocity_noise * normal.numpy()


class PointMaze(MazeFamily):
    """A ball in a maze, pushed by a force along x and y.

    The cells are 1 m wide, the ball 0.2 m; an environment step is 0.01 s, as in gymnasium-robotics' ``PointMaze`` (here
    in two simulation steps, so that a ball at top speed sinks 2 cm into a wall and not 4). The ball's radius, mass and
    force are the source's too. The source cuts velocities at 5 m/s; here drag keeps them below 5 m/s along each axis,
    with a time constant of 0.21 s. Walls are frictionless. Episodes start at rest, within 0.25 m of the middle of the
    start cell along each axis, uniformly, as in the source.

    The observation is (x, y, vx, vy) in metres and metres per second; the action is the force along x and y, where 1
    stands for 100 N.

    Use a subclass with a layout: :class:`PointUMaze`, :class:`PointMediumMaze`, :class:`PointLargeMaze`.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for the source's: 300, 600 and 800 by size of the maze.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = PointUMaze(num_envs=2, observe_goal=True, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, rollout["goal"].shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 2]))
        >>> env.library
        TaskLibrary(PointUMaze-v1: 6 tasks of 2 parameters; train: 4, validation: 1, test: 1)
        >>> PointUMaze.make_library(train=9)
        Traceback (most recent call last):
        ValueError: train = 9: PointUMaze has 6 cells for goals, of which 4 are for this split, one task in each: ...
    """

    cell = 1.0
    wall_height = 0.4
    position_noise = 0.25
    velocity_noise = 0.0
    frame_skip = 2

    @classmethod
    def make_body(cls) -> mujoco.MjSpec:
        """The ball of ``assets/point_maze.xml``."""
        spec = mujoco.MjSpec.from_file(str(OWN_ASSETS / "point_maze.xml"))
        x, y = cls.layout.centres(cls.layout.start, cls.cell)
        spec.body("torso").pos[:2] = x, y
        spec.joint("x").ref, spec.joint("y").ref = x, y  # so that positions count from the middle of the map
        return spec


class AntMaze(MazeFamily):
    """Gymnasium's ant in a maze.

    The cells are 4 m wide and the walls 2 m high, as in gymnasium-robotics' ``AntMaze``; an environment step is 5
    simulation steps of 0.01 s. The body is the ``ant.xml`` of the installed gymnasium, with the walls added. Episodes
    start in the middle of the start cell with the noise of gymnasium's ``Ant-v5``: uniform within 0.1 on each entry of
    ``qpos``, and normal with standard deviation 0.1 on ``qvel``. (gymnasium-robotics has noise of 1 m on the place and
    none on the rest, with which feet can start inside a wall.)

    The observation ``[29]`` is ``qpos`` (x, y, z, the torso's quaternion, 8 joint angles) and ``qvel`` (the torso's
    linear and angular velocity, 8 joint velocities), in metres, radians and seconds; contact forces are left out, as
    in gymnasium-robotics' default for mazes. The action is the torque of each of the 8 joints.

    Use a subclass with a layout: :class:`AntUMaze`, :class:`AntMediumMaze`, :class:`AntLargeMaze`.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for the source's: 700, 1000 and 1000 by size of the maze.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = AntUMaze(num_envs=2, split="test", seed=0)
        >>> env.rollout(2)["observation"].shape, env.goal_space.low, env.goal_space.high
        (torch.Size([2, 2, 29]), tensor([-6., -6.]), tensor([6., 6.]))
    """

    cell = 4.0
    wall_height = 2.0
    position_noise = 0.1
    velocity_noise = 0.1
    frame_skip = 5

    reads = WALKING

    def make_views(self) -> dict[str, View]:
        """See :meth:`TaskFamily.make_views`."""
        return walking_views(self.model, self.model.nq + self.model.nv)

    @classmethod
    def make_body(cls) -> mujoco.MjSpec:
        """The ant of the installed gymnasium."""
        spec = mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))
        spec.body("torso").pos[:2] = cls.layout.centres(cls.layout.start, cls.cell)
        return spec


class PointUMaze(PointMaze):
    """:class:`PointMaze` in a U of 3 x 3 cells, with 6 cells for goals."""

    layout, counts, episode_steps = U_MAZE, TaskCounts(4, 1, 1), 300


class PointMediumMaze(PointMaze):
    """:class:`PointMaze` in a maze of 6 x 6 cells, with 25 cells for goals."""

    layout, counts, episode_steps = MEDIUM_MAZE, TaskCounts(15, 5, 5), 600


class PointLargeMaze(PointMaze):
    """:class:`PointMaze` in a maze of 10 x 7 cells, with 45 cells for goals."""

    layout, counts, episode_steps = LARGE_MAZE, TaskCounts(25, 10, 10), 800


class AntUMaze(AntMaze):
    """:class:`AntMaze` in a U of 3 x 3 cells, with 6 cells for goals."""

    layout, counts, episode_steps = U_MAZE, TaskCounts(4, 1, 1), 700


class AntMediumMaze(AntMaze):
    """:class:`AntMaze` in a maze of 6 x 6 cells, with 25 cells for goals."""

    layout, counts, episode_steps = MEDIUM_MAZE, TaskCounts(15, 5, 5), 1000


class AntLargeMaze(AntMaze):
    """:class:`AntMaze` in a maze of 10 x 7 cells, with 45 cells for goals."""

    layout, counts, episode_steps = LARGE_MAZE, TaskCounts(25, 10, 10), 1000
