"""The half-cheetah, and its families: run at a hidden velocity, run in a hidden direction."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import Spaces, TaskCounts
from peach_trl.envs.families.bodies import ASSETS, Body, column
from peach_trl.envs.goal_space import GoalSpace

_MASS = 14.0  # kg, `settotalmass` of gymnasium's half_cheetah.xml
_VELOCITY = 8  # the entry of the observation that holds the forward velocity


class HalfCheetah(Body):
    """gymnasium's ``HalfCheetah-v5``: a planar runner that never falls for good.

    The observation has 17 entries, in metres, radians and seconds: the height of the torso and its pitch, the angles
    of the six joints (back thigh, shin, foot; front thigh, shin, foot), then the forward velocity (entry 8), the
    vertical velocity, and the rates of the pitch and of the joints. The six actions are the joints' torques. A step
    takes 0.05 s. Episodes never terminate.

    The reward of the families is their own, less ``control_weight`` times the sum of the squared actions. Velocities
    in rewards are means over the step, the displacement by its duration, as in gymnasium and PEARL.

    Attributes:
        control_weight: PEARL's, ``rlkit/envs/half_cheetah_vel.py`` and ``half_cheetah_dir.py``.
        velocity_range: lowest and highest forward velocity of a subgoal, m/s; chosen here.
        velocity_tolerance: how far from it still achieves a subgoal or a goal, m/s; chosen here.
    """

    asset = "half_cheetah.xml"
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    control_weight: ClassVar[float] = 0.05
    velocity_range: ClassVar[tuple[float, float]]
    velocity_tolerance: ClassVar[float]

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """The compiled model; without the compiler's ``settotalmass``, which is deprecated and logs to a file."""
        spec = mujoco.MjSpec.from_file(str(ASSETS / cls.asset))
        spec.compiler.settotalmass = -1
        model = spec.compile()
        data = mujoco.MjData(model)
        mujoco.mj_setTotalmass(model, _MASS)
        mujoco.mj_setConst(model, data)
        # The statistics scale the solver's tolerance. The compiler takes them after setting the mass, setConst never.
        mujoco.mj_forward(model, data)
        inertia = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, inertia)
        model.stat.meaninertia = inertia.diagonal().mean()
        model.stat.meanmass = model.body_mass[1:].mean()
        return model

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :meth:`TaskFamily.make_spaces`."""
        unbounded = torch.full((model.nq + model.nv - 1,), torch.inf)
        velocity = GoalSpace([_VELOCITY], *self.velocity_range, self.velocity_tolerance)
        return Spaces(-unbounded, unbounded, goal=self._make_goal_space(), subgoal=velocity)

    @classmethod
    def _make_goal_space(cls) -> GoalSpace | None:
        return None

    def _observe(self, out: np.ndarray) -> None:
        out[:, :_VELOCITY] = self._qpos[:, 1:]
        out[:, _VELOCITY:] = self._qvel


class HalfCheetahVel(HalfCheetah):
    """A half-cheetah that must run at a forward velocity it is not told.

    A task is a velocity, drawn uniformly from 0 to 3 m/s. The reward of a step is minus the distance of its mean
    velocity from the task's, less 0.05 times the sum of the squared actions. Episodes have 200 steps. 100 training
    and 30 test tasks.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster,
    ``rlkit/envs/half_cheetah_vel.py`` and ``configs/cheetah-vel.json``. Different from there: gymnasium's v5 body and
    observation, which leaves out the torso's position in the world (3 entries); 30 validation tasks besides.

    Goals are forward velocities, achieved within 0.3 m/s; subgoals likewise, from -1 to 4 m/s.

    Examples:
        >>> env = HalfCheetahVel(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 17]),
         TaskLibrary(HalfCheetahVel-v1: 160 tasks of 1 parameters; train: 100, validation: 30, test: 30))
    """

    counts = TaskCounts(100, 30, 30)
    episode_steps = 200
    velocity_range = (-1.0, 4.0)
    velocity_tolerance = 0.3
    top_velocity: ClassVar[float] = 3.0

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """Forward velocities ``[size, 1]``, m/s."""
        return cls.top_velocity * torch.rand(size, 1, generator=generator, dtype=torch.float64)

    @classmethod
    def _make_goal_space(cls) -> GoalSpace:
        return GoalSpace([_VELOCITY], 0.0, cls.top_velocity, cls.velocity_tolerance)

    def _reward(self, observation: Tensor) -> Tensor:
        miss = np.abs(self._mean_velocity() - self._goal.numpy()[:, 0])
        return column(-miss - self.control_weight * self._control_cost())


class HalfCheetahDir(HalfCheetah):
    """A half-cheetah that must run forward or backward as fast as it can, and is not told which.

    There are two tasks, the directions +1 (forward) and -1, and each split holds both, under ids of its own: the test
    asks whether the agent finds out which one it plays, not whether it meets a new one. The reward of a step is the
    direction times its mean velocity, less 0.05 times the sum of the squared actions. Episodes have 200 steps.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), where it is called Half-Cheetah-Fwd-Back,
    github.com/katerakelly/oyster, ``rlkit/envs/half_cheetah_dir.py`` and ``configs/cheetah-dir.json``. Different from
    there: gymnasium's v5 body and observation, which leaves out the torso's position in the world (3 entries).

    A direction is no state to reach, so there is no goal space. Subgoals are forward velocities from -10 to 10 m/s,
    achieved within 0.5 m/s.

    Examples:
        >>> env = HalfCheetahDir(num_envs=2, seed=0, split="test")
        >>> env.library.parameters[env.task_id]
        tensor([[ 1.],
                [-1.]])
    """

    counts = TaskCounts(2, 2, 2)
    episode_steps = 200
    velocity_range = (-10.0, 10.0)
    velocity_tolerance = 0.5

    @staticmethod
    def draw_tasks(size: int, generator: torch.Generator) -> Tensor:
        """Directions ``[size, 1]``: +1 and -1 in turn."""
        return 1.0 - 2.0 * (torch.arange(size) % 2).unsqueeze(-1)

    def _reward(self, observation: Tensor) -> Tensor:
        along = self._mean_velocity() * self._goal.numpy()[:, 0]
        return column(along - self.control_weight * self._control_cost())
