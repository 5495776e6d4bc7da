"""What the locomotion families share: gymnasium's bodies, contact forces, and physics that differ from task to task.

The bodies are those of gymnasium's v5 environments (Towers et al. 2024, arXiv 2407.17032), read from the installed
package: same model, same observation, same random starts, same end of an episode. ``tests/test_locomotion.py`` proves
it against gymnasium itself, float64 bit for bit.
"""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from peach_trl.envs.families.base import TaskFamily
from peach_trl.envs.families.body_options import BodyOptions

if TYPE_CHECKING:
    from mujoco.batch import Batch

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
"""The models that gymnasium installs."""


class Body(TaskFamily):
    """A family of tasks over a body of gymnasium's.

    Every episode starts from the body's own pose with noise on all positions and velocities. As in gymnasium, derived
    fields such as body positions are read as ``mj_step`` leaves them, behind the state by less than one simulation
    step.

    Attributes:
        asset: file name of the model among gymnasium's assets.
        reset_noise: scale of the noise on the start, in the units of positions (m, rad) and velocities (m/s, rad/s).
        normal_velocities: whether the noise on velocities is normal; positions' is always uniform within +-scale.
    """

    asset: ClassVar[str]
    reset_noise: ClassVar[float]
    normal_velocities: ClassVar[bool] = False

    _stage = mujoco.mjtStage.mjSTAGE_VEL  # at resets only: what is read of gymnasium's mj_forward there

    @classmethod
    def make_model(cls) -> mujoco.MjModel:
        """See :meth:`TaskFamily.make_model`."""
        return mujoco.MjModel.from_xml_path(str(ASSETS / cls.asset))

    def _bind(self, batch: Batch) -> None:
        super()._bind(batch)
        self._place = self._bind_place(batch)
        self._before = np.zeros_like(self._place)
        self._left: np.ndarray | None = None  # where bodies were by then, after a resume

    def _bind_place(self, batch: Batch) -> np.ndarray:
        """Where each body is, metres, live: what the displacement of a step is measured by."""
        return self._qpos[:, 0]

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        np.copyto(self._before, self._place if self._left is None else self._left)
        self._left = None
        batch.step(rows, nstep=self._substeps)

    def restart(self, mask: Tensor | None = None, task_id: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`TaskEnv.restart`."""
        result = super().restart(mask, task_id)
        if self._left is not None:
            rows = slice(None) if mask is None else mask.reshape(-1).numpy()
            self._left[rows] = self._place[rows]
        return result

    def process_state(self) -> dict[str, Any]:
        """See :meth:`TaskEnv.process_state`; of some bodies the place is what the last substep began with."""
        state = super().process_state()
        return {**state, "place": torch.from_numpy((self._place if self._left is None else self._left).copy())}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` gave."""
        super().load_process_state(state)
        self._left = state["place"].numpy().copy()

    def _mean_velocity(self) -> np.ndarray:
        """Displacement over the last step by its duration, m/s, in the shape of the place."""
        return (self._place - self._before) / self.dt

    def _velocity_along(self) -> np.ndarray:
        """The mean velocity along the direction that is the task, m/s, ``[N]``; for places in the plane."""
        return np.einsum("ij,ij->i", self._mean_velocity(), self._goal.numpy())

    def _control_cost(self) -> np.ndarray:
        """The sum of the squared controls, ``[N]``."""
        return np.einsum("ij,ij->i", self._ctrl, self._ctrl)

    def _reset_state(self, rows: np.ndarray) -> None:
        scale = self.reset_noise

        def uniform(size: int) -> Tensor:
            return scale * (2 * torch.rand(len(rows), size, generator=self._generator, dtype=torch.float64) - 1)

        self._qpos[rows] += uniform(self.model.nq).numpy()
        if self.normal_velocities:
            shape = len(rows), self.model.nv
            noise = scale * torch.randn(shape, generator=self._generator, dtype=torch.float64)
        else:
            noise = uniform(self.model.nv)
        self._qvel[rows] += noise.numpy()


def column(values: np.ndarray) -> Tensor:
    """Numbers or flags ``[N]`` as the tensor ``[N, 1]`` that an environment returns, float32 or bool."""
    wanted = np.bool_ if values.dtype == np.bool_ else np.float32
    return torch.from_numpy(values.astype(wanted, copy=False)).unsqueeze(-1)


def unit_vectors(angle: Tensor) -> Tensor:
    """The directions ``[..., 2]`` at ``angle`` ``[...]``, radians from the x axis."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def draw_directions(size: int, generator: torch.Generator) -> Tensor:
    """Directions (x, y), ``[size, 2]``, of length 1, uniform over the circle."""
    return unit_vectors(2 * math.pi * torch.rand(size, generator=generator, dtype=torch.float64))


class ContactBody(Body):
    """A body that also observes its contact forces: MuJoCo's ``cfrc_ext``, as gymnasium computes it.

    That is by ``mj_rnePostConstraint`` after ``mj_step``, from the data that the last evaluation of the Runge-Kutta
    step left. ``mujoco.batch`` makes no such call, so every row keeps a whole ``MjData``, and after each step the
    stepped rows' are copied one by one into the same scratch data, on which the call is made. A row in which MuJoCo
    raised an error has no forces to compute and keeps those it had. After a reset all are 0, as in gymnasium. Where the
    body's options leave forces out, none are computed, and all are 0.

    Attributes:
        force_limit: the forces are clipped to +-this, N and N m.
    """

    force_limit: ClassVar[float] = math.inf

    _persistent = True

    @property
    def has_forces(self) -> bool:
        """Whether contact forces are computed and observed."""
        return self.body is None or self.body.contact_forces

    def _set_body(self, model: mujoco.MjModel, body: BodyOptions) -> None:
        super()._set_body(model, body)
        self._persistent = body.contact_forces

    def _bind(self, batch: Batch) -> None:
        super()._bind(batch)
        self._scratch = mujoco.MjData(self.model)
        # [N, bodies * 6] float64: of each body torque about the centre of mass, then force, in the world's axes. The
        # world is the first body.
        self._forces = np.zeros((batch.nsim, self._scratch.cfrc_ext.size))

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        if not self.has_forces:
            return super()._simulate(batch, rows)
        try:
            super()._simulate(batch, rows)
        finally:  # also where one of the rows broke
            self._compute_forces(batch, np.arange(batch.nsim) if rows is None else rows)

    def _compute_forces(self, batch: Batch, rows: np.ndarray) -> None:
        data = self._scratch
        forces = data.cfrc_ext.reshape(-1)  # live
        for row in rows[batch.status[rows] == 0].tolist():
            batch.get_data(row, data)
            mujoco.mj_rnePostConstraint(self.model, data)
            self._forces[row] = forces
        np.clip(self._forces, -self.force_limit, self.force_limit, out=self._forces)

    def _reset_state(self, rows: np.ndarray) -> None:
        super()._reset_state(rows)
        self._forces[rows] = 0.0


class RandomParameters(Body):
    """A body whose masses, inertias, dampings and frictions differ from task to task.

    The parameters of a task are the exponents of MuJoCo's ``body_mass``, ``body_inertia``, ``dof_damping`` and
    ``geom_friction``, in this order and in the order of the fields' own entries: an entry of the model is multiplied
    by ``bases[field] ** exponent``. An exponent of 0 leaves it as it is. The exponents are drawn uniformly within
    +-``limit``. Entries that are 0 in the model, such as the world's mass or the damping of the root, stay 0.

    Source: ``RandomEnv`` of github.com/dennisl88/rand_param_envs (Rothfuss et al., ProMP), which PEARL uses. Different
    from there: constants that MuJoCo derives from these fields are recomputed (``mj_setConst``).

    Attributes:
        bases: the base of the powers, for each field.
        limit: the largest exponent.
    """

    bases: ClassVar[dict[str, float]] = {
        "body_mass": 1.5,
        "body_inertia": 1.5,
        "dof_damping": 1.3,
        "geom_friction": 1.5,
    }
    limit: ClassVar[float] = 3.0

    @classmethod
    def draw_tasks(cls, size: int, generator: torch.Generator) -> Tensor:
        """See :meth:`TaskFamily.draw_tasks`."""
        return cls.limit * (2 * torch.rand(size, _num_parameters(cls), generator=generator, dtype=torch.float64) - 1)

    def _bind(self, batch: Batch) -> None:
        super()._bind(batch)
        self._expanded = [(getattr(self.model, field), batch.expand(field), base) for field, base in self.bases.items()]

    def _load_tasks(self, rows: np.ndarray) -> None:
        exponents, start = self._goal.numpy()[rows].astype(np.float64), 0
        for own, expanded, base in self._expanded:
            chosen = exponents[:, start : start + own.size].reshape(len(rows), *own.shape)
            expanded[rows] = own * base**chosen
            start += own.size
        assert self._batch is not None
        self._batch.set_const(rows)


@cache
def _num_parameters(family: type[RandomParameters]) -> int:
    model = family.make_model()
    return sum(getattr(model, field).size for field in family.bases)
