"""The point robots of PEARL, and what others made of them: a position on a plane that moves by the action itself."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import OWN_ASSETS, Spaces, TaskCounts, TaskFamily
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import half_circle_goals

if TYPE_CHECKING:
    from mujoco.batch import Batch

_GOAL_RADIUS = 0.2  # metres; the source's goal_radius
_STEP = 0.1  # metres; the largest move along an axis in one step


class PointRobot(TaskFamily):
    """A point that must go to a goal anywhere in a square; the reward says how far it is.

    ``point-robot`` of PEARL (Rakelly et al. 2019, arXiv 1903.08254; code katerakelly/oyster,
    ``rlkit/envs/point_robot.py`` and ``configs/point-robot.json``). What is as published:

    - observation: the position (x, y) in metres;
    - dynamics: the position moves by 0.1 m times the action, exactly; there are no walls and no velocity;
    - reward: minus the distance from the goal after the move, in metres;
    - start: uniform in the square [-1, 1] x [-1, 1], drawn anew for each episode; goals: uniform in the same square;
    - episodes of 20 steps that never terminate; 80 training and 20 test tasks.

    What is not: the goals are another draw from the same distribution, and there are 20 validation tasks besides. The
    source has no radius for this robot: its goal space takes the sparse robot's, 0.2 m.

    Args:
        num_envs: number of rows, N.
        library: the tasks; ``None`` makes :meth:`make_library`'s. A task's parameters are its goal's x and y in metres.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for 20.
        options: see :class:`~peach_trl.envs.families.base.TaskFamily`.

    Examples:
        >>> env = PointRobot(num_envs=4, split="test", seed=0)
        >>> rollout = env.rollout(20)
        >>> rollout["observation"].shape, bool((rollout["next", "reward"] < 0).all())
        (torch.Size([4, 20, 2]), True)
        >>> env.library
        TaskLibrary(PointRobot-v1: 120 tasks of 2 parameters; train: 80, validation: 20, test: 20)
    """

    counts = TaskCounts(80, 20, 20)
    episode_steps = 20
    frame_skip = 1
    best_reward, goal_size, step_length = 1.0, _GOAL_RADIUS, _STEP

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model, of ``assets/point_robot.xml``."""
        return mujoco.MjModel.from_xml_path(str(OWN_ASSETS / "point_robot.xml"))

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Goals (x, y) in metres, ``[size, 2]``: uniform in the square [-1, 1] x [-1, 1]."""
        return 2 * torch.rand(size, 2, generator=generator) - 1

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """No bound on positions; goals within 0.2 m and subgoals within 0.1 m, in the square of the goals."""
        return Spaces(
            observation_low=torch.full((2,), -torch.inf),
            observation_high=torch.full((2,), torch.inf),
            goal=GoalSpace([0, 1], -1.0, 1.0, _GOAL_RADIUS, "euclidean"),
            subgoal=GoalSpace([0, 1], -1.0, 1.0, _STEP, "euclidean"),
        )

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array([goal[0], goal[1], 0.05])

    def _bind(self, batch: Batch) -> None:
        self._qpos = batch.bind("qpos")
        self._offset = np.empty(self._qpos.shape, dtype=np.float32)

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        if rows is None:
            np.add(self._qpos, self._ctrl, out=self._qpos)
        else:
            self._qpos[rows] += self._ctrl[rows]

    def _reset_state(self, rows: np.ndarray) -> None:
        self._qpos[rows] = 2 * torch.rand(len(rows), 2, generator=self._generator, dtype=torch.float64).numpy() - 1

    def _observe(self, out: np.ndarray) -> None:
        out[:] = self._qpos

    def _reward(self, observation: Tensor) -> Tensor:
        return torch.from_numpy(-self._distance(observation.numpy(), self._goal.numpy()))

    def _distance(self, position: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Distances ``[N, 1]`` of positions ``[N, 2]`` from places ``[N, 2]`` or one ``[2]``, in metres, float32."""
        np.subtract(position, place, out=self._offset, casting="same_kind")
        return np.hypot(self._offset[:, :1], self._offset[:, 1:])


class SparsePointRobot(PointRobot):
    """A point that must find a goal on a half circle around its start, and is rewarded only near it.

    ``sparse-point-robot`` of PEARL (sources: see :class:`PointRobot`; ``configs/sparse-point-robot.json``). What is as
    published, besides the dynamics and the episodes of :class:`PointRobot`:

    - start: the origin, always;
    - reward: 1 minus the distance from the goal in metres, where that is at most 0.2 m, else 0. The source calls it
      ``sparse_reward``: its encoder reads it and its tests report it, while its meta-training optimises the dense
      reward. Here there is the sparse reward only;
    - goals on the half circle of 1 m radius with y >= 0; 80 training and 20 test tasks.

    What is not: the source deals 100 evenly spaced goals out to its two splits. Here each split has one goal in each
    of as many equal arcs as it has tasks, at a place drawn uniformly (why: see
    :func:`~peach_trl.envs.tasks.half_circle_tasks`), and there are 20 validation tasks besides.

    Examples:
        >>> env = SparsePointRobot(num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"][:, 0].abs().sum(), rollout["next", "reward"].sum()
        (tensor(0.), tensor(0.))
    """

    @staticmethod
    def dense_reward(observation: Tensor, parameters: Tensor) -> Tensor:
        """Minus the distance from the goal in metres: the reward that the source's meta-training optimises."""
        return -torch.linalg.vector_norm(observation - parameters, dim=-1)

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Goals (x, y) in metres, ``[size, 2]``: one in each of ``size`` equal arcs of the half circle."""
        return half_circle_goals(size, generator, radius=1.0)

    def _reset_state(self, rows: np.ndarray) -> None:
        pass  # the model's own state is the origin

    def _reward(self, observation: Tensor) -> Tensor:
        distance = self._distance(observation.numpy(), self._goal.numpy())
        return torch.from_numpy((1 - distance) * (distance <= _GOAL_RADIUS))


class HalfCircleB(SparsePointRobot):
    """A point that must find a goal on a half circle around its start; every step near it is worth 1.

    ``PointRobotSparse-v0`` of BOReL (Dorfman et al. 2021, arXiv 2008.02598; code Rondorf/BOReL,
    ``environments/toy_navigation/point_robot.py``) and of the recurrent baselines of Ni et al. 2022 (arXiv 2110.05038;
    code twni2016/pomdp-baselines, ``envs/meta/toy_navigation/point_robot.py``, ``configs/meta/point_robot``). What is
    as published, besides the dynamics of :class:`PointRobot`:

    - reward: 1 after each step that ends within 0.2 m of the goal, else 0;
    - goals on the half circle of 1 m radius with y >= 0; 80 training and 20 test tasks;
    - episodes of 60 steps that never terminate; meta-tests of 2 episodes.

    What is not: by default the source starts each episode at a place drawn uniformly from [-1.5, 1.5] x [-0.5, 1.5];
    here it is the origin, as with the source's ``modify_init_state_dist=False`` and in VariBAD, so that what can be had
    has known values. Goals are those of :class:`SparsePointRobot`; the source draws angles uniformly.

    Examples:
        >>> env = HalfCircleB(num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"][:, 0].abs().sum(), env.horizon, env.library
        (tensor(0.), 60, TaskLibrary(HalfCircleB-v1: 120 tasks of 2 parameters; train: 80, validation: 20, test: 20))
    """

    episode_steps = 60

    def _reward(self, observation: Tensor) -> Tensor:
        distance = self._distance(observation.numpy(), self._goal.numpy())
        return torch.from_numpy((distance <= _GOAL_RADIUS).astype(np.float32))
