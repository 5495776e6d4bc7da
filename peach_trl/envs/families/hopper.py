"""The hopper, and its family: hop with masses and frictions that are not known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from peach_trl.envs.families.base import TaskCounts
from peach_trl.envs.families.bodies import RandomParameters
from peach_trl.envs.families.walker2d import Walker2d


class Hopper(Walker2d):
    """gymnasium's ``Hopper-v5``: a planar torso on one leg.

    The observation has 11 entries, in metres, radians and seconds: the height of the torso and its pitch, the angles of
    the three joints (thigh, leg, foot), then the forward velocity (entry 5), the vertical velocity and the rates of
    pitch and joints; velocities and rates are clipped to [-10, 10]. The three actions are the joints' torques. A step
    takes 0.008 s. An episode terminates once the torso's height falls to 0.7 m, its pitch leaves +-0.2 rad, or any
    state but x and height leaves +-100.

    Reward and subgoals are as the walker's, see :class:`Walker2d`.

    Attributes:
        healthy_state: the bound of the state; gymnasium's.
    """

    asset = "hopper.xml"
    healthy_height = (0.7, float("inf"))
    healthy_pitch = 0.2
    healthy_state: ClassVar[float] = 100.0
    subgoal_low = (0.7, -0.2, -2.0)
    subgoal_high = (1.7, 0.2, 5.0)
    subgoal_tolerance = (0.2, 0.1, 0.5)

    def _healthy(self) -> np.ndarray:
        bound = self.healthy_state
        joints = (np.abs(self._qpos[:, 2:]) < bound).all(-1) & (np.abs(self._qvel) < bound).all(-1)
        return super()._healthy() & joints


class HopperRandParams(RandomParameters, Hopper):
    """A hopper whose masses, inertias, dampings and frictions it is not told; see :class:`RandomParameters`.

    A task has 41 parameters: the exponents of 5 masses, 15 inertias, 6 dampings and 15 frictions. Episodes have 200
    steps, unless they terminate. 40 training and 10 test tasks.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster,
    ``configs/hopper_rand_params.json``, on github.com/dennisl88/rand_param_envs, ``hopper_rand_params.py``. Different
    from there: gymnasium's v5 body; 10 validation tasks besides. A task changes the physics and not what is wanted, so
    there is no goal space.

    Examples:
        >>> env = HopperRandParams(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 11]),
         TaskLibrary(HopperRandParams-v1: 60 tasks of 41 parameters; train: 40, validation: 10, test: 10))
    """

    counts = TaskCounts(40, 10, 10)
    episode_steps = 200
