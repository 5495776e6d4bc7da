"""Any Gymnasium environment, with a list of tasks, as one TorchRL environment that steps N copies as a batch."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, TensorSpec, Unbounded

from peach_trl.envs.errors import NOT_FINITE, NotFinite, NotFiniteError, broken_rows
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.task_env import TaskEnv
from peach_trl.envs.task_rows import TaskOrder, TaskRows
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.modules.views import View
from peach_trl.seeding import named_generator

SetTask = Callable[[gymnasium.Env, int], dict[str, Any] | None]
Vectorization = Literal["sync", "async"]


class TasksOptions(TypedDict, total=False):
    """What the task suites pass on to :class:`GymnasiumTasksEnv`, which explains them."""

    observe_goal: bool
    task_order: TaskOrder
    seed: int | None
    vectorization: Vectorization
    not_finite: NotFinite


class GymnasiumTasksEnv(TaskEnv):
    """N copies of a Gymnasium environment, one row of the batch each, each playing a task of a library.

    It has the keys of :class:`~peach_trl.envs.BatchedMujocoEnv`, and treats task ids and resets in the same way:
        - ``"observation"`` ``[N, D]`` float32;
        - ``"task_id"`` ``[N, 1]`` int64, in the observation and the state spec: not for the policy to read;
        - ``"goal"`` ``[N, P]`` float32, the task's parameters, with ``observe_goal=True`` only (an oracle);
        - ``"success"`` ``[N, 1]`` bool, with a ``success_key`` only;
        - ``"failed"`` ``[N, 1]`` bool, with ``fails`` only, see :class:`~peach_trl.envs.BatchedMujocoEnv`;
        - ``"action"`` ``[N, A]`` float32 in the environment's own bounds, to which actions are clipped;
        - ``"reward"`` ``[N, 1]`` float32; ``"done"``, ``"terminated"``, ``"truncated"`` ``[N, 1]`` bool, where
          truncated means that ``horizon`` steps were taken since the row's reset, or that the environment says so.

    Every number becomes float32, whatever its type; one too large for it counts as not finite. Observations with more
    than one axis are laid out flat. Nothing resets by itself: the observation of a last step is that of the last step,
    and a row that is done has to be reset before it is stepped again.

    Args:
        make_env: makes one copy; picklable if the environment or its rows go to other processes, for example
            ``functools.partial(gymnasium.make, "Reacher-v5")``.
        library: the tasks; their parameters are what ``"goal"`` shows.
        set_task: called as ``set_task(env, task)`` right before each reset, it puts the copy ``env`` into task
            ``task``, or returns a dict that does so as the reset's ``options``, or both. For a library made with
            :meth:`TaskLibrary.subset` it is given the ids of the whole library (``source_ids``).
        num_envs: number of rows, N.
        horizon: environment steps until truncation.
        split: the split of the library whose tasks are played.
        tasks: ids of the tasks that are played, instead of a split.
        goal_space: when a task's goal is achieved; ``None`` if tasks are no states to reach.
        subgoal_space: what a higher level of a hierarchy may ask of a lower one; ``None`` for flat policies only.
        observation_keys: for environments whose observation is a dict, the entries that are put one after another.
        observation_low: float ``[D]``, a bound that observations never pass, for networks to scale by; ``-inf`` where
            there is none. By default none: the bounds that Gymnasium environments declare are often passed.
        observation_high: float ``[D]``, likewise; give both or neither.
        success_key: where ``info`` says whether a step ended in success; steps that do not say so count as failures.
        fails: whether a termination means that the body has failed, as it does for gymnasium's walking bodies.
        views: views of the observation by name, see :mod:`peach_trl.modules.views`.
        reads: which of them ``"lower"`` levels, the ``"top"`` level and the ``"context"`` encoder read; else all.
        observe_goal: whether to show the goal.
        task_order: ``"fixed"``: row n starts with task ``tasks[n % len(tasks)]`` and keeps its task until told
            another; ``"random"``: a uniform draw from ``tasks`` at each reset.
        seed: of the draws of tasks and, through them, of every copy, which is seeded at its first reset only; ``None``
            follows ``torch.manual_seed``.
        vectorization: ``"sync"`` steps the rows in this process, ``"async"`` each in a process of its own, for
            environments of some milliseconds a step; results are the same, bit for bit. With the second, programs need
            ``if __name__ == "__main__":``, as with TorchRL's worker processes.
        not_finite: what a row that breaks does: ``"raise"`` an error that carries the other rows' step, or
            ``"truncate"`` that row alone, with a warning. A policy whose action is not finite always raises, as does a
            start that is not finite.

    The copies are made at the first reset, in the process that uses them. One more is made at construction, and
    closed, for its spaces.

    Raises:
        ValueError: for arguments, spaces or task ids that cannot be used.
        NotFiniteError: when an action, an observation or a reward is not finite.
        RuntimeError: when a row is stepped that is done or was never reset.

    Examples:
        >>> gravity = torch.tensor([[5.0], [10.0], [15.0]])
        >>> def set_gravity(env, task):
        ...     env.unwrapped.g = gravity[task].item()
        >>> env = GymnasiumTasksEnv(
        ...     partial(gymnasium.make, "Pendulum-v1"), TaskLibrary(gravity, {"train": torch.arange(3)}), set_gravity,
        ...     num_envs=3, horizon=100, seed=0,
        ... )
        >>> rollout = env.rollout(5)
        >>> rollout["observation"].shape, rollout["task_id"][:, 0, 0]
        (torch.Size([3, 5, 3]), tensor([0, 1, 2]))
        >>> env.reset(TensorDict(task_id=torch.tensor([2, 2, 2]), batch_size=[3]))["task_id"][:, 0]
        tensor([2, 2, 2])
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        library: TaskLibrary,
        set_task: SetTask,
        *,
        num_envs: int,
        horizon: int,
        split: str = "train",
        tasks: Sequence[int] | Tensor | None = None,
        goal_space: GoalSpace | None = None,
        subgoal_space: GoalSpace | None = None,
        observation_keys: Sequence[str] | None = None,
        observation_low: Tensor | None = None,
        observation_high: Tensor | None = None,
        success_key: str | None = None,
        fails: bool = False,
        views: Mapping[str, View] | None = None,
        reads: Mapping[str, str] | None = None,
        observe_goal: bool = False,
        task_order: TaskOrder = "fixed",
        seed: int | None = None,
        vectorization: Vectorization = "sync",
        not_finite: NotFinite = "raise",
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon = {horizon}: must be >= 1")
        if not_finite not in NOT_FINITE:
            raise ValueError(f"not_finite = {not_finite!r}: must be one of {', '.join(NOT_FINITE)}")
        if vectorization not in ("sync", "async"):
            raise ValueError(f"vectorization = {vectorization!r}: must be 'sync' or 'async'")
        chosen = library.split(split) if tasks is None else torch.as_tensor(tasks)
        self._task_rows = TaskRows(library, num_envs, chosen, task_order)
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.library, self.horizon = library, horizon
        self.goal_space, self.subgoal_space = goal_space, subgoal_space
        self.observe_goal, self.vectorization = observe_goal, vectorization
        self.not_finite: NotFinite = not_finite
        self.task_order, self.tasks = task_order, self._task_rows.tasks
        self._success_key, self.fails = success_key, fails
        self.views, self.reads = dict(views or {}), dict(reads or {})
        self._make_row = partial(_Row, make_env, set_task, observation_keys, success_key)
        self._vector: SyncVectorEnv | AsyncVectorEnv | None = None
        self._set_seed(seed)
        probe = self._make_row(0)
        self._size, box = probe.size, probe.action_box
        probe.close()
        self._make_specs(box, observation_low, observation_high)
        self._clear()

    def _make_specs(self, box: spaces.Box, low: Tensor | None, high: Tensor | None) -> None:
        rows, size = self.batch_size[0], self._size
        wide = torch.Size([rows, size])
        observed: TensorSpec = Unbounded(shape=wide, dtype=torch.float32)
        if low is not None and high is not None:
            for name, bound in (("observation_low", low), ("observation_high", high)):
                if bound.shape != torch.Size([size]):
                    raise ValueError(f"{name} of shape {tuple(bound.shape)}: must be ({size},), as the observation")
            low, high = low.float().expand(wide), high.float().expand(wide)
            observed = Bounded(low=low, high=high, shape=wide, dtype=torch.float32)
        elif low is not None or high is not None:
            raise ValueError("observation_low and observation_high: give both or neither")
        more: dict[str, TensorSpec] = {}
        if self._success_key is not None:
            more["success"] = Categorical(2, shape=torch.Size([rows, 1]), dtype=torch.bool)
        if self.fails:
            more["failed"] = Categorical(2, shape=torch.Size([rows, 1]), dtype=torch.bool)
        bounds = [torch.from_numpy(bound.astype(np.float32)).expand(rows, -1) for bound in (box.low, box.high)]
        action = Bounded(low=bounds[0], high=bounds[1], shape=bounds[0].shape, dtype=torch.float32)
        self._task_rows.set_specs(self, observed, action, self.observe_goal, **more)

    # EnvBase's own methods.

    def _advance(
        self, action: np.ndarray, moves: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], NotFiniteError | None]:
        moves = np.ones(self.batch_size[0], dtype=np.bool_) if moves is None else moves
        vector = self._check_step(action, moves)
        self._steps[moves] += 1
        raw, rewards, _, _, info = vector.step((action, moves.astype(np.int64)))
        observation = np.where(moves[:, None], raw, self._last)
        reward = np.zeros((len(moves), 1), dtype=np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold counts as not finite
            reward[moves, 0] = rewards[moves]
        self._terminated[moves] = self._failed[moves] = info["terminated"][moves]
        self._truncated[moves] = info["truncated"][moves] | (self._steps[moves] >= self.horizon)
        self._success[moves] = info["success"][moves]
        error = self._replace_broken(observation, reward)
        self._last = observation
        return {**self._values(), "reward": reward}, error

    def restart(self, mask: Tensor | None = None, task_id: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`TaskEnv.restart`."""
        resets = self._mask(mask)
        if self._vector is None and not resets.all():
            raise RuntimeError(f"rows {np.flatnonzero(~resets).tolist()} were never reset: reset all rows first")
        rows = np.flatnonzero(resets)
        if not len(rows):
            return self._started()
        self._task_rows.assign(rows, task_id)
        tasks = self.library.source_ids[self._task_rows.task_id[:, 0]].tolist()
        seeds = [seed if reset else None for seed, reset in zip(self._seeds, resets, strict=True)]
        vector = self._vector or self._make_vector()
        raw, info = vector.reset(seed=seeds, options={"reset_mask": resets, "tasks": tasks})
        broken = rows[broken_rows(raw[rows])]
        good = np.setdiff1d(rows, broken)
        self._last = self._last.copy()
        self._last[good] = raw[good]
        self._steps[rows] = 0
        self._terminated[rows], self._failed[rows], self._truncated[rows] = False, False, np.isin(rows, broken)
        self._success[rows] = info["success"][rows]
        self._seeds = [None if reset else seed for seed, reset in zip(self._seeds, resets, strict=True)]
        values = self._started()
        if len(broken):
            error = self._task_rows.not_finite_error(
                "observation", broken, self._steps[broken], "check these tasks, and reset these rows again"
            )
            error.tensordict = TensorDict(values, batch_size=self.batch_size, device=self.device)
            raise error
        return values

    def _set_seed(self, seed: int | None) -> None:
        self._task_rows.set_seed(seed)
        self._generator = named_generator("copies of the environment", seed)
        self._seeds = self._draw_seeds()  # given to each copy at its next reset, then None

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Closes the copies and the processes that they run in."""
        if self._vector is not None:
            self._vector.close()
            self._vector, self._seeds = None, self._draw_seeds()
            gc.collect()  # copies hold each other, and simulations are large: 740 of Meta-World's took 16 GB
        super().close(raise_if_closed=raise_if_closed)

    # Beyond EnvBase.

    def render_row(self, row: int) -> Any:
        """What a copy's own ``render()`` gives: a picture, uint8 [H, W, 3], where ``render_mode="rgb_array"``."""
        if self._vector is None:
            raise RuntimeError("no row was reset yet: call reset() before render_row()")
        if isinstance(self._vector, SyncVectorEnv):
            return self._vector.envs[row].render()
        return self._vector.call("render")[row]

    def _make_vector(self) -> SyncVectorEnv | AsyncVectorEnv:
        rows = [partial(self._make_row, row) for row in range(self.batch_size[0])]
        self._clear()
        if self.vectorization == "sync":
            self._vector = SyncVectorEnv(rows, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        else:
            context = _process_context()
            self._vector = AsyncVectorEnv(rows, copy=False, context=context, autoreset_mode=AutoresetMode.DISABLED)
        return self._vector

    def _clear(self) -> None:
        """Forgets all episodes; nothing of these arrays is ever handed out."""
        rows = self.batch_size[0]
        self._steps = np.zeros(rows, dtype=np.int64)
        flags = (np.zeros(rows, dtype=np.bool_) for _ in range(4))
        self._terminated, self._truncated, self._success, self._failed = flags  # failed: broke
        self._last = np.zeros((rows, self._size), dtype=np.float32)

    def _draw_seeds(self) -> list[int | None]:
        return list(torch.randint(2**31, self.batch_size, generator=self._generator).tolist())

    def _mask(self, mask: Tensor | None) -> np.ndarray:
        rows = self.batch_size[0]
        return np.ones(rows, dtype=np.bool_) if mask is None else mask.reshape(rows).numpy().copy()

    def _values(self) -> dict[str, np.ndarray]:
        """What rows show now, by key, without what their tasks show."""
        flags = {"terminated": self._terminated, "truncated": self._truncated}
        flags["done"] = self._terminated | self._truncated
        if self._success_key is not None:
            flags["success"] = self._success
        if self.fails:
            flags["failed"] = self._failed
        return {"observation": self._last.copy(), **{name: flag[:, None].copy() for name, flag in flags.items()}}

    def _started(self) -> dict[str, Tensor]:
        return {**{key: torch.from_numpy(value) for key, value in self._values().items()}, **self._shown()}

    def _check_step(self, action: np.ndarray, moves: np.ndarray) -> SyncVectorEnv | AsyncVectorEnv:
        if self._vector is None:
            raise RuntimeError("no row was reset yet: call reset() before step()")
        over = np.flatnonzero(moves & (self._terminated | self._truncated))
        if len(over):
            raise RuntimeError(
                f'rows {over.tolist()} are done: reset them before the next step, with a "_reset" mask of their own'
                ' or as collectors do, or leave them out with "_step"'
            )
        rows = np.flatnonzero(moves)
        broken = rows[broken_rows(action[rows])]
        if len(broken):
            raise self._task_rows.not_finite_error(
                "action", broken, self._steps[broken] + 1, "check the policy; no row was stepped"
            )
        return self._vector

    def _replace_broken(self, observation: np.ndarray, reward: np.ndarray) -> NotFiniteError | None:
        """Truncates the rows that broke at their last finite observation, in place."""
        broken = {"observation": broken_rows(observation), "reward": broken_rows(reward)}
        rows = np.union1d(broken["observation"], broken["reward"])
        if not len(rows):
            return None
        observation[rows], reward[rows] = self._last[rows], 0.0
        self._terminated[rows], self._truncated[rows], self._success[rows] = False, True, False
        self._failed[rows] = True
        key = "observation" if len(broken["observation"]) else "reward"
        return self._task_rows.not_finite_error(key, rows, self._steps[rows], "check the actions and the environment")


def _process_context() -> str | None:
    """How rows get their processes: forked off one that has imported this module once, where there are such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    return "forkserver"


class _Row(gymnasium.Wrapper):
    """One copy, where it runs: takes tasks, stands still when told to, and speaks float32 and bool only."""

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        set_task: SetTask,
        keys: Sequence[str] | None,
        success_key: str | None,
        row: int,
    ) -> None:
        super().__init__(make_env())
        self._set_task, self._keys, self._success_key, self._row = set_task, keys, success_key, row
        self.action_box = _action_box(self.env.action_space)
        self.size = _observation_size(self.env.observation_space, keys)
        self._still = np.zeros(self.size, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.size,), np.float32)
        self.action_space = spaces.Tuple([self.action_box, spaces.Discrete(2)])  # the second: whether to move

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        task = cast(dict[str, Any], options)["tasks"][self._row]
        observation, info = self.env.reset(seed=seed, options=self._set_task(self.env, task))
        return self._flat(observation), {"success": self._succeeded(info)}

    def step(self, action: tuple[np.ndarray, int]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        control, moves = action
        if not moves:
            return self._still, 0.0, False, False, {"terminated": False, "truncated": False, "success": False}
        box = self.action_box
        control = np.clip(control.astype(box.dtype), box.low, box.high)
        observation, reward, terminated, truncated, info = self.env.step(control)
        # In info, since vector environments step no row that they know to be done, not even to stand still.
        flags = {"terminated": bool(terminated), "truncated": bool(truncated), "success": self._succeeded(info)}
        return self._flat(observation), np.asarray(reward).item(), False, False, flags

    def _flat(self, observation: Any) -> np.ndarray:
        parts = [observation] if self._keys is None else [observation[key] for key in self._keys]
        with np.errstate(over="ignore"):
            return np.concatenate([np.asarray(part).astype(np.float32).reshape(-1) for part in parts])

    def _succeeded(self, info: dict[str, Any]) -> bool:
        value = None if self._success_key is None else info.get(self._success_key)
        return value is not None and bool(np.asarray(value).item() > 0)


def _action_box(space: gymnasium.Space) -> spaces.Box:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"action space {space}: must be a Box of floats with one axis; wrap the environment to have one"
        )
    if not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"action space {space}: must have finite bounds; use gymnasium.wrappers.RescaleAction or such")
    return space


def _observation_size(space: gymnasium.Space, keys: Sequence[str] | None) -> int:
    """How many numbers an observation has."""
    parts = [space]
    if isinstance(space, spaces.Dict):
        names = ", ".join(map(repr, space.spaces))
        unknown = [key for key in keys or () if key not in space.spaces]
        if not keys or unknown:
            raise ValueError(f"observation_keys = {keys}: choose among the entries of the observation, {names}")
        if "desired_goal" in keys:
            raise ValueError(
                f"observation_keys = {keys}: 'desired_goal' would tell the policy its task; leave it out, or give the"
                " goal to all with observe_goal=True"
            )
        parts = [space.spaces[key] for key in keys]
    elif keys is not None:
        raise ValueError(f"observation_keys = {keys}: the observation is no dict but {space}; leave the keys out")
    for part in parts:
        if not isinstance(part, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
            raise ValueError(f"observation space {part}: must be numeric; use gymnasium.wrappers.FlattenObservation")
    return sum(int(np.prod(cast(tuple[int, ...], part.shape))) for part in parts)
