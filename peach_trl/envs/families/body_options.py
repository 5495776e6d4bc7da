"""How a body is simulated: what makes a walking body of MuJoCo's cheap to simulate, and learnable."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from peach_trl.config import option

INTEGRATORS = {
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
}


@dataclass(frozen=True)
class BodyOptions:
    """How a body is simulated and where it starts; presets are in ``configs/body``.

    Examples:
        >>> FAST.substeps, FAST.torque
        (10, 0.2)
    """

    integrator: str = option(choices=tuple(INTEGRATORS), help="of the simulation; rk4 costs four times the others")
    substeps: int = option(low=1, high=1000, help="simulation steps of an environment step")
    torque: float = option(above=0, help="factor on the torques of the actuators")
    contact_forces: bool = option(
        help="observe them, where there are any; they cost half as much as Euler's simulation"
    )
    random_heading: bool = option(help="start with the torso turned about the vertical by a uniform angle")
    fails: bool = option(help="end an episode in failure once the torso is upside down")

    def apply(self, model: mujoco.MjModel) -> None:
        """Sets integrator and torques of a compiled model."""
        model.opt.integrator = INTEGRATORS[self.integrator]
        model.actuator_gear[:] *= self.torque


GYMNASIUM = BodyOptions("rk4", 5, 1.0, contact_forces=True, random_heading=False, fails=False)
"""gymnasium's ant, bit for bit; in families without contact forces and with other bodies, what comes nearest."""
FAST = BodyOptions("euler", 10, 0.2, contact_forces=False, random_heading=True, fails=True)
"""An ant that learns to walk in minutes: a fifth of the torque, held for twice as long, at a quarter of the cost."""


def turned(qpos: np.ndarray, qvel: np.ndarray, angle: np.ndarray) -> None:
    """Turns free bodies about the vertical, in place.

    Args:
        qpos: states [N, nq] that begin with the place (3) and the quaternion (4) of a free joint.
        qvel: velocities [N, nv] that begin with the linear one (3), in the world's frame, and the angular one in the
            body's own, which stays as it is.
        angle: radians, [N].
    """
    (cos, sin), (c, s) = (np.cos(angle / 2), np.sin(angle / 2)), (np.cos(angle), np.sin(angle))
    w, x, y, z = qpos[:, 3:7].T.copy()
    qpos[:, 3:7] = np.stack([cos * w - sin * z, cos * x - sin * y, cos * y + sin * x, cos * z + sin * w], -1)
    along, across = qvel[:, :2].T.copy()
    qvel[:, :2] = np.stack([c * along - s * across, s * along + c * across], -1)
