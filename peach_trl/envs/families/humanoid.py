"""The humanoid, and its family: walk in a hidden direction."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import Spaces, TaskCounts, walking_views
from peach_trl.envs.families.bodies import ContactBody, column, draw_directions
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.modules.views import View

if TYPE_CHECKING:
    from mujoco.batch import Batch


class Humanoid(ContactBody):
    """gymnasium's ``Humanoid-v5``: a torso with legs and arms.

    The observation has 348 entries, in metres, radians, seconds and newtons: the torso's height and orientation (a
    quaternion) and the angles of the 17 joints (22 entries); the torso's velocity (entries 22 to 24) and angular
    velocity and the rates of the joints (23 in all); then of the 13 bodies ``cinert``, inertia and mass (130), and
    ``cvel``, velocity (78); the torques of the motors on the joints (17); and torque and force of the contacts on the
    bodies (78). Motors and contacts are zeros after a reset. The 17 actions are the joints' torques. A step takes
    0.015 s. An episode terminates once the torso's height leaves 1 to 2 m.

    View: ``"body"``, heights, joints and velocities in the heading frame (44 entries), for goal-reaching levels.

    Attributes:
        healthy_height: metres; gymnasium's and PEARL's.
        forward_weight, control_weight, contact_weight, contact_limit, healthy_reward: of the reward; gymnasium's, and
            PEARL's, whose 0.25 over the simulation step is 1.25 over the environment step. The control cost counts
            controls, which are 0.4 times the actions.
    """

    asset = "humanoid.xml"
    frame_skip = 5
    reset_noise = 0.01
    fails = True
    reads = {"lower": "body"}
    healthy_height: ClassVar[tuple[float, float]] = (1.0, 2.0)
    forward_weight: ClassVar[float] = 1.25
    control_weight: ClassVar[float] = 0.1
    contact_weight: ClassVar[float] = 5e-7
    contact_limit: ClassVar[float] = 10.0
    healthy_reward: ClassVar[float] = 5.0

    def make_spaces(self, model: mujoco.MjModel) -> Spaces:
        """See :meth:`TaskFamily.make_spaces`."""
        position, bodies = model.nq - 2, model.nbody - 1
        unbounded = torch.full((position + model.nv + (model.nv - 6) + (10 + 6 + 6) * bodies,), torch.inf)
        return Spaces(-unbounded, unbounded, None, GoalSpace([position, position + 1], -4.0, 4.0, 0.5))

    def _bind(self, batch: Batch) -> None:
        super()._bind(batch)
        rows = batch.nsim
        # Of each field without the world, or without the root's six degrees of freedom.
        self._parts = [
            self._qpos[:, 2:],
            self._qvel,
            batch.bind("cinert").reshape(rows, -1)[:, 10:],
            batch.bind("cvel").reshape(rows, -1)[:, 6:],
            batch.bind("qfrc_actuator")[:, 6:],
            self._forces[:, 6:],
        ]

    def _bind_place(self, batch: Batch) -> np.ndarray:
        return batch.bind("subtree_com")[:, 1, :2]  # the centre of all mass

    def _observe(self, out: np.ndarray) -> None:
        start = 0
        for part in self._parts:
            out[:, start : start + part.shape[1]] = part
            start += part.shape[1]

    def make_views(self) -> dict[str, View]:
        """See :meth:`TaskFamily.make_views`."""
        return walking_views(self.model, self.observation_spec["observation"].shape[-1], place=False)

    def _costs(self) -> np.ndarray:
        contact = self.contact_weight * np.einsum("ij,ij->i", self._forces, self._forces)
        return self.control_weight * self._control_cost() + np.minimum(contact, self.contact_limit)

    def _failed(self, observation: Tensor) -> Tensor:
        low, high = self.healthy_height
        height = self._qpos[:, 2]
        return column(~((height > low) & (height < high)))


class HumanoidDir(Humanoid):
    """A humanoid that must walk as fast as it can in a direction of the plane that it is not told.

    A task is a direction (x, y) of length 1, at an angle drawn uniformly from the whole circle. The reward of a step is
    1.25 times the mean velocity of the centre of mass along the direction, plus 5, less 0.1 times the sum of the
    squared controls, less 5e-7 times the sum of the squared contact forces, of which at most 10. Episodes have 200
    steps, unless they terminate. 100 training and 30 test tasks.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254), github.com/katerakelly/oyster, ``rlkit/envs/humanoid_dir.py``
    and ``configs/humanoid-dir.json``. Different from there: gymnasium's v5 body and observation, which leaves out
    entries that are always 0 (the world's, and the motors' on the root); directions in place of angles as the tasks'
    parameters; 30 validation tasks besides.

    A direction is no state to reach, so there is no goal space. Subgoals are velocities (x, y) of the torso, each from
    -4 to 4 m/s, achieved within 0.5 m/s each; chosen here.

    Examples:
        >>> env = HumanoidDir(num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape, env.library
        (torch.Size([3, 2, 348]),
         TaskLibrary(HumanoidDir-v1: 160 tasks of 2 parameters; train: 100, validation: 30, test: 30))
    """

    counts = TaskCounts(100, 30, 30)
    episode_steps = 200

    draw_tasks = staticmethod(draw_directions)

    def _reward(self, observation: Tensor) -> Tensor:
        return column(self.forward_weight * self._velocity_along() + self.healthy_reward - self._costs())
