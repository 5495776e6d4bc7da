"""The walker, and its family: walk with masses and frictions that are not known."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import Spaces, TaskCounts
from peach_trl.envs.families.bodies import Body, RandomParameters, column
from peach_trl.envs.goal_space import GoalSpace


class Walker2d(Body):
    """gymnasium's ``Walker2d-v5``: a planar torso on two legs.

    The observation has 17 entries, in metres, radians and seconds: the height of the torso and its pitch, the angles
    of the six joints (right thigh, leg, foot; left thigh, leg, foot), then the forward velocity (entry 8), the vertical
    velocity and the rates of pitch and joints; velocities and rates are clipped to [-10, 10]. The six actions are the
    joints' torques. A step takes 0.008 s. An episode terminates once the torso's height leaves 0.8 to 2 m or its pitch
    +-1 rad.

    The reward of a step is its mean forward velocity, plus 1 (also where it terminates, as in PEARL and unlike in
    gymnasium), less 0.001 times the sum of the squared actions.

    Attributes:
        healthy_height: metres; gymnasium's.
        healthy_pitch: the largest pitch, radians; gymnasium's.
        top_speed: bound of the velocities and rates in the observation.
        control_weight, healthy_reward: of the reward; gymnasium's and PEARL's.
        subgoal_low, subgoal_high, subgoal_tolerance: of height (m), pitch (rad) and forward velocity (m/s), which make
            up a subgoal; bounds of the first two are those of termination, the rest was chosen here.
    """

    asset = "walker2d_v5.xml"
    frame_skip = 4
    reset_noise = 0.005
    fails = True
    healthy_height: ClassVar[tuple[float, float]] = (0.8, 2.0)
    healthy_pitch: ClassVar[float] = 1.0
    top_speed: ClassVar[float] = 10.0
    control_weight: ClassVar[float] = 1e-3
    healthy_reward: ClassVar[float] = 1.0
    subgoal_low: ClassVar[tuple[float, float, float]] = (0.8, -1.0, -2.0)
    subgoal_high: ClassVar[tuple[float, float, float]] = (2.0, 1.0, 5.0)
    subgoal_tolerance: ClassVar[tuple[float, float, float]] = (0.2, 0.3, 0.5)

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :meth:`TaskFamily.make_spaces`."""
        velocity = model.nq - 1
        high = torch.cat([torch.full((velocity,), torch.inf), torch.full((model.nv,), self.top_speed)])
        subgoal = GoalSpace([0, 1, velocity], self.subgoal_low, self.subgoal_high, self.subgoal_tolerance)
        return Spaces(-high, high, None, subgoal)

    def _observe(self, out: np.ndarray) -> None:
        velocity = self.model.nq - 1
        out[:, :velocity] = self._qpos[:, 1:]
        np.clip(self._qvel, -self.top_speed, self.top_speed, out=out[:, velocity:], casting="same_kind")

    def _reward(self, observation: Tensor) -> Tensor:
        return column(self._mean_velocity() + self.healthy_reward - self.control_weight * self._control_cost())

    def _failed(self, observation: Tensor) -> Tensor:
        return column(~self._healthy())

    def _healthy(self) -> np.ndarray:
        low, high = self.healthy_height
        height, pitch = self._qpos[:, 1], self._qpos[:, 2]
        return (height > low) & (height < high) & (np.abs(pitch) < self.healthy_pitch)


class Walker2dRandParams(RandomParameters, Walker2d):
    """A walker whose masses, inertias, dampings and frictions it is not told; see :class:`RandomParameters`.

    A task has 65 parameters: the exponents of 8 masses, 24 inertias, 9 dampings and 24 frictions. Episodes have 200
    steps, unless they terminate. 40 training and 10 test tasks.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster,
    ``configs/walker_rand_params.json``, on github.com/dennisl88/rand_param_envs, ``walker_rand_params.py``. Different
    from there: gymnasium's v5 body, and with it 4 simulation steps in place of 5; 10 validation tasks besides. A task
    changes the physics and not what is wanted, so there is no goal space.

    Examples:
        >>> env = Walker2dRandParams(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 17]),
         TaskLibrary(Walker2dRandParams-v1: 60 tasks of 65 parameters; train: 40, validation: 10, test: 10))
        >>> model, _ = env.simulation(row=1)
        >>> bool(model.body_mass[1] == env.model.body_mass[1] * 1.5 ** env.library.parameters[1, 1].double())
        True
    """

    counts = TaskCounts(40, 10, 10)
    episode_steps = 200
