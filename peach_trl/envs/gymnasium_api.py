"""The task families as plain Gymnasium environments, one simulation each, for code that knows nothing of TorchRL.

Importing ``peach_trl.envs`` registers every family, so this works in any program::

    import gymnasium
    import peach_trl.envs

    env = gymnasium.make("peach_trl/HalfCheetahVel-v1", split="test")

and so does ``gymnasium.make("peach_trl.envs:peach_trl/HalfCheetahVel-v1")`` without the second import.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorSpec

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.families import FAMILIES
from peach_trl.envs.renderers import Camera, RowRenderer, frames_per_second
from peach_trl.envs.task_rows import TaskOrder

NAMESPACE = "peach_trl"

Observation = np.ndarray | dict[str, np.ndarray]


class FamilyGymnasiumEnv(gymnasium.Env):
    """One row of a batched environment as a Gymnasium environment: same physics, same tasks, same numbers.

    It is for single environments and for other libraries; to train here, the batched environment itself is many times
    faster than a vector of these.

    The observation is a float32 array ``[D]``; with ``observe_goal`` a dict of it, ``"observation"``, and of the task's
    parameters ``[P]``, ``"desired_goal"``. Actions are float32 ``[A]`` in [-1, 1], which stands for the range of each
    actuator. ``info["task_id"]`` is the task that is played. An episode is truncated after ``horizon`` steps, without
    any wrapper.

    ``reset(seed=...)`` seeds the start states and the draws of tasks; ``reset(options={"task_id": 3})`` plays task 3.

    Args:
        family: a family's name in ``peach_trl.envs.families.FAMILIES``, or what makes a batched environment: its class,
            or for example ``functools.partial(PointEnv, config)``.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        horizon: environment steps per episode; ``None`` for the family's own.
        observe_goal: whether to show the task's parameters (an oracle).
        task_order: ``"random"``: each reset without a ``task_id`` draws a task; ``"fixed"``: it keeps the task that was
            played, at first the first of ``tasks``.
        render_mode: ``None`` or ``"rgb_array"``.
        width: of pictures, in pixels.
        height: likewise.
        camera: see :class:`~peach_trl.envs.renderers.RowRenderer`.
        options: further arguments of ``family``, such as ``library``.

    Raises:
        ValueError: for names, tasks and options that do not exist, and for actions of another shape.
        NotFiniteError: when an action, an observation or a reward is not finite.

    Examples:
        >>> from functools import partial
        >>> from peach_trl.envs import PointConfig, PointEnv
        >>> config = PointConfig(
        ...     arena=10.0, horizon=200, goals="half_circle", radius=8.0, goal_tolerance=2.5, subgoals="place",
        ...     subgoal_tolerance=0.5, speed=0.25, frame_skip=5, train_tasks=30, validation_tasks=15, test_tasks=15,
        ...     task_seed=0, threads=1, not_finite="raise",
        ... )
        >>> env = FamilyGymnasiumEnv(partial(PointEnv, config), split="test")
        >>> env.reset(seed=0, options={"task_id": 50})
        (array([0., 0., 0., 0.], dtype=float32), {'task_id': 50})
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> observation.shape, reward, terminated, truncated, info
        ((4,), 0.0, False, False, {'task_id': 50})
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(
        self,
        family: str | Callable[..., BatchedMujocoEnv],
        *,
        split: str = "train",
        tasks: Sequence[int] | Tensor | None = None,
        horizon: int | None = None,
        observe_goal: bool = False,
        task_order: TaskOrder = "random",
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: Camera = None,
        **options: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r}: must be None or 'rgb_array'")
        if horizon is not None:
            options["horizon"] = horizon
        make = _family(family) if isinstance(family, str) else family
        self.batched = make(
            num_envs=1, split=split, tasks=tasks, observe_goal=observe_goal, task_order=task_order, **options
        )
        self.render_mode, self._picture = render_mode, {"width": width, "height": height, "camera": camera}
        self._renderer: RowRenderer | None = None
        self._seeded = False
        self.metadata = {**self.metadata, "render_fps": round(frames_per_second(self.batched))}
        self.observation_space, self.action_space = self._make_spaces()

    def _make_spaces(self) -> tuple[spaces.Space, spaces.Box]:
        specs = self.batched.observation_spec
        observation, action = _box(specs["observation"]), _box(self.batched.action_spec)
        if not self.batched.observe_goal:
            return observation, action
        goal = spaces.Box(-np.inf, np.inf, tuple(specs["goal"].shape[1:]), np.float32)
        return spaces.Dict({"observation": observation, "desired_goal": goal}), action

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; see :class:`gymnasium.Env`.

        Args:
            seed: of start states and draws of tasks; ``None`` goes on with the draws.
            options: ``{"task_id": i}`` plays task ``i`` of the library, of whichever split.
        """
        super().reset(seed=seed)
        unknown = set(options or {}) - {"task_id"}
        if unknown:
            raise ValueError(f"options: {sorted(unknown)} are unknown; the only one is 'task_id'")
        if seed is not None or not self._seeded:
            self.batched.set_seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        request = TensorDict({}, batch_size=[1])
        if options and options.get("task_id") is not None:
            request["task_id"] = torch.tensor([operator.index(options["task_id"])])
        return self._observed(self.batched.reset(request))

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One environment step with ``action`` ``[A]``; see :class:`gymnasium.Env`."""
        values = np.asarray(action, dtype=np.float32)
        if values.shape != self.action_space.shape:
            raise ValueError(f"action of shape {values.shape}: must be {self.action_space.shape}")
        result, error = self.batched.advance(torch.from_numpy(values[None]))
        if error is not None:
            raise error
        observation, info = self._observed(result)
        terminated, truncated = result["terminated"].item(), result["truncated"].item()
        return observation, result["reward"].item(), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        """A picture, uint8 ``[height, width, 3]``, with the task's goal drawn in; nothing without a ``render_mode``."""
        if self.render_mode is None:
            gymnasium.logger.warn('nothing is rendered without a render_mode: make the environment with "rgb_array"')
            return None
        if self._renderer is None:
            self._renderer = RowRenderer(self.batched, **self._picture)
        return self._renderer.draw(0)

    def close(self) -> None:
        """Frees the simulator and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.batched.close(raise_if_closed=False)

    def _observed(self, result: Any) -> tuple[Observation, dict[str, Any]]:
        info = {"task_id": int(result["task_id"])}
        observation = result["observation"][0].numpy()
        if self.batched.observe_goal:
            return {"observation": observation, "desired_goal": result["goal"][0].numpy()}, info
        return observation, info


def register_families() -> list[str]:
    """Registers every family as ``peach_trl/<Name>-v<version>``, and returns these ids; twice changes nothing.

    Examples:
        >>> ids = register_families()
        >>> all(name in gymnasium.registry for name in ids)
        True
    """
    ids = []
    for name, family in FAMILIES.items():
        ids.append(f"{NAMESPACE}/{name}-v{family.version}")
        if ids[-1] not in gymnasium.registry:
            gymnasium.register(ids[-1], f"{__name__}:{FamilyGymnasiumEnv.__name__}", kwargs={"family": name})
    return ids


def _family(name: str) -> Callable[..., BatchedMujocoEnv]:
    if name not in FAMILIES:
        raise ValueError(f"family = {name!r}: unknown; the families are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _box(spec: TensorSpec) -> spaces.Box:
    """The space of one row of a bounded spec ``[1, D]``."""
    bounds: Any = spec.space
    return spaces.Box(bounds.low[0].numpy(), bounds.high[0].numpy(), dtype=np.float32)


register_families()
