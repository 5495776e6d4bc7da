"""What draws a row of an environment as it is now, without a display: MuJoCo, or an environment of Gymnasium itself.

MuJoCo chooses how it draws when it is imported: the environment variable ``MUJOCO_GL``, or else a window system. Where
neither the variable nor a display is set, this module draws with EGL, whatever was imported before.
"""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import importlib.util
import os
import platform
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from peach_trl.declared import declared
from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv

GOAL_COLOUR = (0.1, 0.7, 0.2, 0.3)
#: of the subgoals, RGBA: those for level 0 first, then those for level 1, and so on from the start again
LEVEL_COLOURS = ((0.1, 0.3, 1.0, 0.5), (1.0, 0.6, 0.0, 0.5), (0.7, 0.1, 0.8, 0.5), (0.0, 0.7, 0.8, 0.5))
_UNSIZED = 0.03  # half-size of a marker whose tolerance is no length, as a share of the model's extent

Camera = str | mujoco.MjvCamera | None


class RowRenderer:
    """Draws rows of a batched environment as they are now.

    The task's goal is a green marker, also where it is hidden from the policy; a subgoal is a marker in its level's
    colour, ``LEVEL_COLOURS``. A marker is as large as the tolerance: a sphere in a Euclidean goal space, a box in the
    others. Goals and subgoals for which the environment's ``goal_position`` knows no place are not drawn.

    Args:
        env: a batched environment, transformed or not.
        width: of the picture, in pixels.
        height: likewise.
        camera: the name of one of the model's cameras, or a camera; ``None`` looks at the whole model and all tasks'
            goals, or, where goals are no places, follows the body.

    Raises:
        RuntimeError: where nothing can draw; it names the remedy.
        ValueError: for a camera that the model does not have.

    Examples:
        ::

            renderer = RowRenderer(env, camera="track")
            frame = renderer.draw(row=3)  # uint8 [480, 480, 3]
    """

    def __init__(self, env: EnvBase, *, width: int = 480, height: int = 480, camera: Camera = None) -> None:
        self._env = batched(env)
        model, data = self._env.simulation(0)
        model = copy.copy(model)
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._camera = _make_camera(self._env, model, data, camera)
        self._rect, self._option = mujoco.MjrRect(0, 0, width, height), mujoco.MjvOption()
        self._gl, self._context = _make_contexts(model, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[int(flag)] = 0  # without a graphics card, they take three quarters of the time

    def draw(self, row: int, subgoals: Tensor | None = None) -> np.ndarray:
        """A picture of ``row``, uint8 ``[height, width, 3]``, with ``subgoals`` ``[h, G]``, bottom level first."""
        env, scene = self._env, self._scene
        model, data = env.simulation(row)
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, int(mujoco.mjtCatBit.mjCAT_ALL), scene)
        if env.goal_space is not None:
            self._mark(row, env.goal_space, env.library.parameters[env.task_id[row]], GOAL_COLOUR)
        for level, subgoal in enumerate(() if subgoals is None else subgoals):
            self._mark(row, env.subgoal_space, subgoal, LEVEL_COLOURS[level % len(LEVEL_COLOURS)])
        self._gl.make_current()
        pixels = np.empty((self._rect.height, self._rect.width, 3), dtype=np.uint8)
        mujoco.mjr_setBuffer(int(mujoco.mjtFramebuffer.mjFB_OFFSCREEN), self._context)
        mujoco.mjr_render(self._rect, scene, self._context)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL counts rows from below

    def close(self) -> None:
        """Frees the memory of the graphics card."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def _mark(self, row: int, space: GoalSpace, goal: Tensor, colour: Sequence[float]) -> None:
        model, data = self._env.simulation(row)  # a copy of its own, as goal_position may change it
        values = goal.detach().numpy().astype(np.float64)
        place = self._env.goal_position(values, model, data)
        if place is None or self._scene.ngeom >= self._scene.maxgeom:
            return
        size = marker_size(space, values, place, _UNSIZED * model.stat.extent)
        ball = space.metric == "euclidean"
        kind = mujoco.mjtGeom.mjGEOM_ELLIPSOID if ball else mujoco.mjtGeom.mjGEOM_BOX
        geom = self._scene.geoms[self._scene.ngeom]
        mujoco.mjv_initGeom(geom, int(kind), size, place, np.eye(3).flatten(), np.array(colour, dtype=np.float32))
        self._scene.ngeom += 1


class GymnasiumRenderer:
    """Draws rows of a :class:`~peach_trl.envs.GymnasiumTasksEnv` by their own ``render()``, without goals and subgoals.

    Args:
        env: whose copies are made with ``render_mode="rgb_array"``.

    Examples:
        ::

            frame = GymnasiumRenderer(env).draw(row=3)  # uint8, as large as the environment draws
    """

    def __init__(self, env: GymnasiumTasksEnv) -> None:
        self._env = env

    def draw(self, row: int, subgoals: Tensor | None = None) -> np.ndarray:  # noqa: ARG002
        """A picture of ``row``, uint8 [H, W, 3].

        Raises:
            ValueError: where the environment draws none.
        """
        picture = self._env.render_row(row)
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(
                f"{type(self._env).__name__}: its copies draw a {type(picture).__name__}, no picture; make them with "
                "render_mode='rgb_array', as by env.options.arguments.render_mode"
            )
        return picture

    def close(self) -> None:
        """Nothing: copies close their own windows."""


def make_renderer(env: EnvBase, width: int, height: int, camera: Camera) -> RowRenderer | GymnasiumRenderer:
    """What draws the rows of an environment, transformed or not; Gymnasium's choose size and camera themselves.

    Raises:
        TypeError: for an environment of another kind.
    """
    base = drawable(env)
    if isinstance(base, GymnasiumTasksEnv):
        return GymnasiumRenderer(base)
    return RowRenderer(base, width=width, height=height, camera=camera)


def drawable(env: EnvBase) -> BatchedMujocoEnv | GymnasiumTasksEnv:
    """The environment under any transforms, if it is of a kind that can be drawn.

    Raises:
        TypeError: if it is not.
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if not isinstance(env, (BatchedMujocoEnv, GymnasiumTasksEnv)):
        raise TypeError(f"{type(env).__name__} cannot be drawn: give a BatchedMujocoEnv or a GymnasiumTasksEnv")
    return env


def batched(env: EnvBase) -> BatchedMujocoEnv:
    """The batched environment under any transforms."""
    base = drawable(env)
    if not isinstance(base, BatchedMujocoEnv):
        raise TypeError(f"{type(base).__name__} cannot be drawn by MuJoCo: give a BatchedMujocoEnv")
    return base


def frames_per_second(env: EnvBase) -> float:
    """The rate at which one frame an environment step shows the simulation's own time, but 10 at least, 50 at most."""
    return min(50.0, max(10.0, 1 / declared(env, "dt", 1 / 25)))


def marker_size(space: GoalSpace, goal: np.ndarray, place: np.ndarray, otherwise: float) -> np.ndarray:
    """Half-sizes ``[3]`` in metres of the marker of ``goal`` ``[G]``, which lies at ``place`` ``[3]``.

    A tolerance is a length only where it is that of a coordinate: where an entry of the goal is the same entry of its
    place. Other axes get ``otherwise``, or the smallest such tolerance if that is less.

    Examples:
        >>> space = GoalSpace([0, 1], low=-10.0, high=10.0, tolerance=[0.5, 1.5])
        >>> marker_size(space, np.array([3.0, 4.0]), np.array([3.0, 4.0, 0.75]), otherwise=0.1)
        array([0.5, 1.5, 0.1])
        >>> arm = GoalSpace([0, 1], low=-3.0, high=3.0, tolerance=0.2, metric="euclidean")  # angles of two joints
        >>> marker_size(arm, np.array([0.3, 1.0]), np.array([0.6, 0.9, 0.0]), otherwise=0.1)
        array([0.1, 0.1, 0.1])
    """
    axes = range(min(3, space.dim, len(goal)))
    coordinates = [axis for axis in axes if np.isclose(goal[axis], place[axis])]
    if space.metric == "euclidean":
        return np.full(3, float(space.tolerance) if len(coordinates) == len(axes) else otherwise)
    tolerance = space.tolerance.numpy()[coordinates]
    size = np.full(3, min([otherwise, *tolerance]))
    size[coordinates] = tolerance
    return size


def _make_camera(env: BatchedMujocoEnv, model: Any, data: Any, camera: Camera) -> mujoco.MjvCamera:
    if isinstance(camera, mujoco.MjvCamera):
        return camera
    made = mujoco.MjvCamera()
    if camera is not None:
        made.type = int(mujoco.mjtCamera.mjCAMERA_FIXED)
        made.fixedcamid = mujoco.mj_name2id(model, int(mujoco.mjtObj.mjOBJ_CAMERA), camera)
        if made.fixedcamid < 0:
            names = ", ".join(repr(model.camera(i).name) for i in range(model.ncam)) or "none"
            raise ValueError(f"camera = {camera!r}: the model has no such camera; its cameras are: {names}")
        return made
    mujoco.mjv_defaultFreeCamera(model, made)
    places, body = _goal_places(env, model, data), 1
    if len(places) or model.nbody <= body:
        furthest = np.linalg.norm(places - model.stat.center, axis=-1).max(initial=0)
        made.distance = max(1.2 * model.stat.extent, 3.3 * furthest)  # MuJoCo's view is 45 degrees high
        if len(places) and np.ptp(places[:, 2]) < 0.1 * model.stat.extent:
            made.elevation = -65  # on the ground: over the walls
        return made
    geoms = np.flatnonzero(model.body_rootid[model.geom_bodyid] == body)
    reach = np.linalg.norm(data.geom_xpos[geoms] - data.subtree_com[body], axis=-1) + model.geom_rbound[geoms]
    made.type, made.trackbodyid = int(mujoco.mjtCamera.mjCAMERA_TRACKING), body
    made.distance, made.elevation = 4.5 * reach.max(initial=model.stat.meansize), -20
    return made


def _goal_places(env: BatchedMujocoEnv, model: Any, data: Any) -> np.ndarray:
    """Where the goals of all tasks lie, or the one place of them all, ``[n, 3]``; empty where they are no places."""
    place = getattr(env, "place", None)  # as Wind has it
    if place is not None:
        return np.array([[*place, 0.0]])
    goals = () if env.goal_space is None else env.library.parameters.numpy().astype(np.float64)
    places = [env.goal_position(goal, model, data) for goal in goals]
    return np.array([place for place in places if place is not None]).reshape(-1, 3)


def _make_contexts(model: Any, width: int, height: int) -> tuple[Any, Any]:
    """The contexts of OpenGL and of MuJoCo for pictures of that size."""
    # Mesa brings an LLVM of its own; loaded after it, triton crashes.
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
    chosen = os.environ.get("MUJOCO_GL", "")
    display = platform.system() != "Linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    try:
        if chosen or display:
            from mujoco.gl_context import GLContext
        else:
            from mujoco.egl import GLContext
        context = GLContext(width, height)
        context.make_current()
        return context, mujoco.MjrContext(model, int(mujoco.mjtFontScale.mjFONTSCALE_100))
    except Exception as error:  # each backend fails in ways of its own, and some while they are imported
        raise RuntimeError(
            f"MuJoCo cannot draw here (MUJOCO_GL={chosen!r}: {error}). Without a display set MUJOCO_GL=egl (Debian and"
            " Ubuntu: apt install libegl1 libgl1-mesa-dri; an NVIDIA driver brings its own) or MUJOCO_GL=osmesa (apt"
            " install libosmesa6) before Python starts"
        ) from error
