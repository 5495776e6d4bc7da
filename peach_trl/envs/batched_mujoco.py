"""Many MuJoCo simulations of one model as one TorchRL environment, each row playing a task of a library."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import mujoco
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.seeding import named_generator

if TYPE_CHECKING:
    from mujoco.batch import Batch


class BatchedMujocoEnv(EnvBase):
    """N simulations of one model stepped together by ``mujoco.batch`` (MuJoCo 4), one row of the batch each.

    Follows the conventions of TorchRL's own MuJoCo environments: a task library, and a ``"task_id"`` that stands in
    both the observation and the state specs and can be set with ``env.reset(TensorDict(task_id=ids, batch_size=[N]))``.

    Subclasses give :meth:`_bind`, :meth:`_observe`, :meth:`_reward`, and where needed :meth:`_terminated`,
    :meth:`_reset_state` and the attribute ``_stage``. :class:`~peach_trl.envs.point.PointEnv` is an example.

    Keys, for N rows:
        - ``"observation"`` ``[N, D]`` float32;
        - ``"task_id"`` ``[N, 1]`` int64, for bookkeeping such as per-task replay: not for the policy to read;
        - ``"goal"`` ``[N, P]`` float32, the task's parameters, with ``known_goal=True`` only (an oracle);
        - ``"action"`` ``[N, A]`` float32 in [-1, 1];
        - ``"reward"`` ``[N, 1]`` float32; ``"done"``, ``"terminated"``, ``"truncated"`` ``[N, 1]`` bool, where
          truncated means that ``horizon`` steps were taken since the row's reset.

    Which task a row plays after a reset: the ``task_id`` in the tensordict given to ``reset``, for the rows being
    reset; without one, the task it had (``task_order="fixed"``) or a fresh draw (``"random"``). The automatic resets
    of rollouts and collectors hide everything but ``"_reset"``, so a task id left over from the last step never counts
    as given; a hand-made partial reset that passes the last step's tensordict does give it: leave ``"task_id"`` out
    there.

    Args:
        model: the compiled model, shared by all rows.
        library: the tasks; their parameters are what ``"goal"`` shows.
        num_envs: number of rows, N.
        tasks: int64 ids of the tasks that this environment plays.
        horizon: environment steps until truncation.
        frame_skip: simulation steps per environment step.
        observation_low: float ``[D]``, a bound that observations never pass.
        observation_high: float ``[D]``, likewise.
        goal_space: when a task's goal is achieved.
        subgoal_space: what a higher level of a hierarchy may ask of a lower one, and when that is achieved.
        known_goal: whether to show the goal.
        task_order: ``"fixed"``: row n starts with task ``tasks[n % len(tasks)]`` and keeps its task until told
            another; ``"random"``: a uniform draw from ``tasks`` at each reset.
        threads: threads that step the simulations; results do not depend on it.
        seed: of the environment's own draws; ``None`` follows ``torch.manual_seed``.

    The simulator is made at the first reset or step, in the process that uses it: factories of environments pickle,
    and no thread pool exists before a fork.

    Raises:
        ValueError: for arguments, actions or task ids that cannot be used.
        FloatingPointError: when an action or an observation is not finite.
        ImportError: at the first reset or step, when the installed MuJoCo is older than 4.
    """

    _stage: mujoco.mjtStage = mujoco.mjtStage.mjSTAGE_NONE
    """Forward stage to compute after steps and resets, for subclasses that observe derived fields."""

    def __init__(
        self,
        model: mujoco.MjModel,
        library: TaskLibrary,
        *,
        num_envs: int,
        tasks: Tensor,
        horizon: int,
        frame_skip: int,
        observation_low: Tensor,
        observation_high: Tensor,
        goal_space: GoalSpace,
        subgoal_space: GoalSpace,
        known_goal: bool = False,
        task_order: Literal["fixed", "random"] = "fixed",
        threads: int = 1,
        seed: int | None = None,
    ) -> None:
        for name, value in (("num_envs", num_envs), ("horizon", horizon), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be >= 1")
        if task_order not in ("fixed", "random"):
            raise ValueError(f"task_order = {task_order!r}: must be 'fixed' or 'random'")
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.model, self.library, self.horizon = model, library, horizon
        self.goal_space, self.subgoal_space = goal_space, subgoal_space
        self.known_goal, self.task_order = known_goal, task_order
        self._substeps, self._threads = frame_skip, threads
        self._batch: Batch | None = None
        self.tasks = torch.as_tensor(tasks, dtype=torch.int64).clone()
        self._check_task_ids(self.tasks, "tasks")
        self._task_id = self.tasks[torch.arange(num_envs) % len(self.tasks)].unsqueeze(-1)
        self._goal = library.parameters[self._task_id[:, 0]]
        self._steps = np.zeros((num_envs, 1), dtype=np.int64)
        self._set_seed(seed)
        self._make_specs(observation_low, observation_high)

    def _make_specs(self, low: Tensor, high: Tensor) -> None:
        rows, shape = self.batch_size[0], self.batch_size
        wide = torch.Size([rows, len(low)])
        box = Bounded(low=low.float().expand(wide), high=high.float().expand(wide), shape=wide, dtype=torch.float32)
        self._dim = len(low)
        task_id = Categorical(n=self.library.num_tasks, shape=torch.Size([rows, 1]), dtype=torch.int64)
        observation = Composite(observation=box, task_id=task_id, shape=shape)
        if self.known_goal:
            observation["goal"] = Unbounded(shape=self._goal.shape, dtype=torch.float32)
        self.observation_spec = observation
        self.state_spec = Composite(task_id=task_id.clone(), shape=shape)
        self.action_spec = Bounded(low=-1.0, high=1.0, shape=torch.Size([rows, self.model.nu]), dtype=torch.float32)
        self.reward_spec = Unbounded(shape=torch.Size([rows, 1]), dtype=torch.float32)
        flag = Categorical(2, shape=torch.Size([rows, 1]), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=shape)

    # What subclasses give.

    def _bind(self, batch: Batch) -> None:
        """Keeps the live arrays, ``batch.bind(field)``, that the other methods read and write."""
        raise NotImplementedError

    def _observe(self, out: np.ndarray) -> None:
        """Writes the observations into ``out``, float32 ``[N, D]``."""
        raise NotImplementedError

    def _reward(self, observation: Tensor) -> Tensor:
        """The reward ``[N, 1]`` float32 of having come to ``observation`` ``[N, D]``."""
        raise NotImplementedError

    def _terminated(self, observation: Tensor) -> Tensor:
        """Whether each row ended for good, bool ``[N, 1]``; never, unless a subclass says otherwise."""
        return torch.zeros(len(observation), 1, dtype=torch.bool)

    def _reset_state(self, rows: np.ndarray) -> None:
        """Writes the start state of ``rows`` into the bound arrays, which hold the model's own; for random starts."""

    # EnvBase's own methods.

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = self._batch or self._make_batch()
        self._ctrl[:] = tensordict.get("action").detach().numpy()
        if not math.isfinite(np.add.reduce(self._ctrl, axis=None)):
            self._raise_not_finite("action", self._ctrl)
        mask = tensordict.get("_step", None)
        rows = None if mask is None else self._rows(mask)
        batch.step(rows, nstep=self._substeps, stage=int(self._stage))
        self._steps[slice(None) if rows is None else rows] += 1
        observation = self._read()
        reward = self._reward(observation)
        if mask is not None:
            reward = reward * mask.reshape(-1, 1)
        terminated = self._terminated(observation)
        truncated = torch.from_numpy(self._steps >= self.horizon)
        values = self._observed(observation)
        values.update(reward=reward, terminated=terminated, truncated=truncated, done=terminated | truncated)
        return TensorDict(values, batch_size=self.batch_size, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        batch = self._batch or self._make_batch()
        mask = None if tensordict is None else tensordict.get("_reset", None)
        rows = np.arange(self.batch_size[0]) if mask is None else self._rows(mask)
        self._assign_tasks(torch.from_numpy(rows), None if tensordict is None else tensordict.get("task_id", None))
        batch.reset(rows, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        self._reset_state(rows)
        if self._stage != mujoco.mjtStage.mjSTAGE_NONE:
            batch.forward(rows, stage=int(self._stage))
        self._steps[rows] = 0
        values = self._observed(self._read())
        for name in ("done", "terminated", "truncated"):
            values[name] = torch.zeros(len(self._steps), 1, dtype=torch.bool)
        return TensorDict(values, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._generator = named_generator("environment", seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulator."""
        self._batch = None
        super().close(raise_if_closed=raise_if_closed)

    # Beyond EnvBase.

    @property
    def task_id(self) -> Tensor:
        """The task that each row plays now, int64 ``[N]``."""
        return self._task_id[:, 0].clone()

    def simulation(self, row: int) -> mujoco.MjData:
        """A copy of one row's simulation with all derived fields computed, for rendering or inspection."""
        data = (self._batch or self._make_batch()).get_data(row)
        mujoco.mj_forward(self.model, data)
        return data

    def _make_batch(self) -> Batch:
        try:
            from mujoco.batch import Batch
        except ImportError as error:
            raise ImportError(
                f"mujoco {mujoco.__version__} cannot step simulations in batches: install mujoco>=4"
                " (pip install 'mujoco>=4'), or use an environment that needs no batches"
            ) from error
        batch = Batch(self.model, self.batch_size[0], self._threads)
        self._ctrl = batch.bind("ctrl")
        self._bind(batch)
        self._batch = batch
        return batch

    def _rows(self, mask: Tensor) -> np.ndarray:
        return np.flatnonzero(mask.reshape(-1).numpy())

    def _read(self) -> Tensor:
        """Fresh observations; simulator memory is never handed out."""
        values = np.empty((len(self._steps), self._dim), dtype=np.float32)
        self._observe(values)
        if not math.isfinite(np.add.reduce(values, axis=None)):
            self._raise_not_finite("observation", values)
        return torch.from_numpy(values)

    def _observed(self, observation: Tensor) -> dict[str, Tensor]:
        values = {"observation": observation, "task_id": self._task_id.clone()}
        if self.known_goal:
            values["goal"] = self._goal.clone()
        return values

    def _raise_not_finite(self, key: str, values: np.ndarray) -> None:
        rows = np.flatnonzero(~np.isfinite(values).all(-1))
        if not len(rows):  # finite numbers whose sum is not
            return
        remedy = "check the policy" if key == "action" else "check the actions, or shorten the model's timestep"
        raise FloatingPointError(
            f'"{key}" is not finite in rows {rows.tolist()}, task ids {self._task_id[rows, 0].tolist()},'
            f" at step {self._steps[rows, 0].tolist()} of the episode: {remedy}"
        )

    def _assign_tasks(self, rows: Tensor, given: Tensor | None) -> None:
        if given is not None:
            if given.shape not in (self.batch_size, self._task_id.shape):
                raise ValueError(
                    f"task_id of shape {tuple(given.shape)}: must be {tuple(self.batch_size)} or"
                    f" {tuple(self._task_id.shape)}, one id per row"
                )
            if given.dtype != torch.int64:
                raise ValueError(f"task_id of dtype {given.dtype}: must be torch.int64; use task_id.long()")
            chosen = given.reshape(-1)[rows]
            self._check_task_ids(chosen, "task_id")
        elif self.task_order == "random":
            chosen = self.tasks[torch.randint(len(self.tasks), (len(rows),), generator=self._generator)]
        else:
            return
        self._task_id[rows, 0] = chosen
        self._goal = self.library.parameters[self._task_id[:, 0]]

    def _check_task_ids(self, ids: Tensor, name: str) -> None:
        wrong = ids[(ids < 0) | (ids >= self.library.num_tasks)].unique().tolist()
        if wrong:
            last = self.library.num_tasks - 1
            raise ValueError(f"{name}: ids {wrong} are out of range; the library's ids are 0..{last}")
        if name == "tasks" and (ids.ndim != 1 or not len(ids)):
            raise ValueError(f"{name} of shape {tuple(ids.shape)}: give a non-empty 1-D tensor of ids")
