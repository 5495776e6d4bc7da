"""The ant, and its families: walk in a hidden direction, walk to a hidden goal."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import WALKING, Spaces, TaskCounts, walking_views
from peach_trl.envs.families.bodies import ContactBody, column, draw_directions, unit_vectors
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.modules.views import View

if TYPE_CHECKING:
    from mujoco.batch import Batch


class Ant(ContactBody):
    """gymnasium's ``Ant-v5``: a torso on four legs.

    The observation, in metres, radians, seconds and newtons: the torso's position x and y, where ``positions`` says so
    (``exclude_current_positions_from_observation=False`` in gymnasium); its height and its orientation (a quaternion;
    of norm 1 but at the start, which has noise); the angles of the eight joints; the torso's velocity (3) and angular
    velocity (3) and the rates of the joints; then torque and force of the contacts on each of the 13 bodies, clipped
    to [-1, 1], and zeros after a reset; a body without contact forces leaves them out. That makes 105 entries, or 107
    with the position, and 78 less without the forces. The eight actions are the joints' torques. A step takes 0.05 s.

    The families' reward is their own, less the sum of the squared actions times ``control_weight``, and less the sum
    of the squared, clipped contact forces times ``contact_weight``. Velocities in rewards are means over the step, as
    in gymnasium and PEARL.

    Attributes:
        positions: whether the observation begins with x and y.
        falls: whether an episode ends, in failure, once the torso's height leaves ``healthy_height``.
        healthy_height: metres; gymnasium's and PEARL's.
        control_weight: of the family.
        contact_weight: gymnasium's and PEARL's.
    """

    asset = "ant.xml"
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    force_limit = 1.0
    positions: ClassVar[bool]
    falls: ClassVar[bool]
    healthy_height: ClassVar[tuple[float, float]] = (0.2, 1.0)
    control_weight: ClassVar[float]
    contact_weight: ClassVar[float] = 5e-4

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :meth:`TaskFamily.make_spaces`."""
        position = model.nq if self.positions else model.nq - 2
        state = torch.full((position + model.nv,), torch.inf)
        high = torch.cat([state, torch.ones(6 * (model.nbody - 1) * self.has_forces)])
        return Spaces(-high, high, *self._make_goal_spaces(velocity=position))

    def _make_goal_spaces(self, velocity: int) -> tuple[GoalSpace | None, GoalSpace]:
        """The spaces of goals and of subgoals; the torso's velocity is in the entries from ``velocity`` on."""
        raise NotImplementedError

    def _bind_place(self, batch: Batch) -> np.ndarray:
        return batch.bind("xpos")[:, 1, :2]

    def _observe(self, out: np.ndarray) -> None:
        first = 0 if self.positions else 2
        position, state = self.model.nq - first, self.model.nq + self.model.nv - first
        out[:, :position] = self._qpos[:, first:]
        out[:, position:state] = self._qvel
        if self.has_forces:
            out[:, state:] = self._forces[:, 6:]

    def _costs(self) -> np.ndarray:
        contact = np.einsum("ij,ij->i", self._forces, self._forces)
        return self.control_weight * self._control_cost() + self.contact_weight * contact

    def _failed(self, observation: Tensor) -> Tensor:
        failed = super()._failed(observation) if self.body is not None and self.body.fails else None
        if not self.falls:
            assert failed is not None  # else nobody asks
            return failed
        low, high = self.healthy_height
        height = self._qpos[:, 2]
        fallen = column(~((height >= low) & (height <= high)))
        return fallen if failed is None else fallen | failed

    def make_views(self) -> dict[str, View]:
        """See :meth:`TaskFamily.make_views`."""
        return walking_views(self.model, self.observation_spec["observation"].shape[-1], self.positions)


class AntDir(Ant):
    """An ant that must walk as fast as it can in a direction of the plane that it is not told.

    A task is a direction (x, y) of length 1, at an angle drawn uniformly from the whole circle. The reward of a step is
    its mean velocity along the direction, plus 1, less 0.5 times the sum of the squared actions, less the contact
    cost. An episode has 200 steps, and terminates once the torso's height leaves 0.2 to 1 m. 100 training and 30 test
    tasks; :meth:`forward_backward` has PEARL's two.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster, ``rlkit/envs/ant_dir.py``.
    Different from there: gymnasium's v5 body and its observation with contact forces (``rlkit/envs/ant.py`` leaves
    them out); directions in place of angles as the tasks' parameters; the number of tasks, which is that of PEARL's
    humanoid, with 30 validation tasks besides. PEARL's ``configs/ant-dir.json`` has two tasks.

    A direction is no state to reach, so there is no goal space. Subgoals are velocities (x, y) of the torso, each from
    -6 to 6 m/s, achieved within 0.5 m/s each; chosen here.

    Examples:
        >>> env = AntDir(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 105]),
         TaskLibrary(AntDir-v1: 160 tasks of 2 parameters; train: 100, validation: 30, test: 30))
        >>> AntDir(num_envs=2, library=AntDir.forward_backward()).library.parameters[:2]
        tensor([[ 1.,  0.],
                [-1.,  0.]])
    """

    counts = TaskCounts(100, 30, 30)
    episode_steps = 200
    positions = False
    falls = fails = True
    reads = {"lower": "body"}
    control_weight = 0.5
    healthy_reward: ClassVar[float] = 1.0

    draw_tasks = staticmethod(draw_directions)

    @staticmethod
    def forward_backward() -> TaskLibrary:
        """The two tasks of PEARL's Ant-Fwd-Back, along x and against it; each split holds both, under its own ids."""
        both = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        splits = {name: torch.tensor([2 * i, 2 * i + 1]) for i, name in enumerate(("train", "validation", "test"))}
        return TaskLibrary(both.repeat(3, 1), splits, "AntForwardBackward-v1")

    def _make_goal_spaces(self, velocity: int) -> tuple[None, GoalSpace]:
        return None, GoalSpace([velocity, velocity + 1], -6.0, 6.0, 0.5)

    def _reward(self, observation: Tensor) -> Tensor:
        return column(self._velocity_along() + self.healthy_reward - self._costs())


class AntGoal(Ant):
    """An ant that must walk to a place that it is not told.

    A task is a place (x, y), drawn uniformly from the disc of 3 m around the start. The reward of a step is minus the
    distance from it along x plus along y, less 0.1 times the sum of the squared actions, less the contact cost. An
    episode has 200 steps and never terminates. 150 training and 30 test tasks.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster, ``rlkit/envs/ant_goal.py``
    and ``configs/ant-goal.json``. Different from there: gymnasium's v5 body and observation, with the position but
    without the contact forces on the world, which are always 0 (6 entries); 30 validation tasks besides.

    Goals and subgoals are places (x, y) of the torso, achieved within 0.5 m; goals within +-3 m, subgoals within +-5 m.
    Tolerance and box of the subgoals were chosen here: PEARL's reward knows none.

    Examples:
        >>> env = AntGoal(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 107]),
         TaskLibrary(AntGoal-v1: 210 tasks of 2 parameters; train: 150, validation: 30, test: 30))
        >>> env.goal_space.achieved(torch.cat([torch.tensor([1.0, 2.0]), torch.zeros(105)]), torch.tensor([1.3, 2.3]))
        tensor(True)
    """

    counts = TaskCounts(150, 30, 30)
    episode_steps = 200
    positions = True
    falls = False
    reads = WALKING
    control_weight = 0.1
    goal_radius: ClassVar[float] = 3.0

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Places (x, y), ``[size, 2]``, metres."""
        angle, area = torch.rand(2, size, generator=generator, dtype=torch.float64)
        return cls.goal_radius * area.sqrt().unsqueeze(-1) * unit_vectors(2 * math.pi * angle)

    def _make_goal_spaces(self, velocity: int) -> tuple[GoalSpace, GoalSpace]:
        goal = GoalSpace([0, 1], -self.goal_radius, self.goal_radius, 0.5, "euclidean")
        return goal, GoalSpace([0, 1], -5.0, 5.0, 0.5, "euclidean")

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """See :meth:`BatchedMujocoEnv.goal_position`."""
        return np.array([goal[0], goal[1], 0.0])

    def _reward(self, observation: Tensor) -> Tensor:
        distance = np.abs(self._place - self._goal.numpy()).sum(-1)
        return column(-distance - self._costs())
