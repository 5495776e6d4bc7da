"""Many MuJoCo simulations of one model as one TorchRL environment, each row playing a task of a library."""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypedDict

import mujoco
import numpy as np
import torch
from torch import Tensor
from torchrl.data import Binary, Bounded

from peach_trl.envs.errors import NOT_FINITE, NotFinite, NotFiniteError, broken_rows
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.task_env import TaskEnv
from peach_trl.envs.task_rows import TaskOrder, TaskRows
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.seeding import named_generator

if TYPE_CHECKING:
    from mujoco.batch import Batch


_NO_ROWS = np.empty(0, dtype=np.int64)


class EnvOptions(TypedDict, total=False):
    """What every batched environment takes besides its own arguments; see :class:`BatchedMujocoEnv`."""

    observe_goal: bool
    task_order: TaskOrder
    threads: int
    seed: int | None
    not_finite: NotFinite


class BatchedMujocoEnv(TaskEnv):
    """N simulations of one model stepped together by ``mujoco.batch`` (MuJoCo 4), one row of the batch each.

    Follows the conventions of TorchRL's own MuJoCo environments: a task library, and a ``"task_id"`` that stands in
    both the observation and the state specs and can be set with ``env.reset(TensorDict(task_id=ids, batch_size=[N]))``.

    Subclasses give :meth:`_bind`, :meth:`_observe` and :meth:`_reward`, and where needed the hooks beside them and the
    attribute ``_stage``. :class:`~peach_trl.envs.point.PointEnv` is an example.

    Keys, for N rows:
        - ``"observation"`` ``[N, D]`` float32;
        - ``"task_id"`` ``[N, 1]`` int64, for bookkeeping such as per-task replay: not for the policy to read;
        - ``"goal"`` ``[N, P]`` float32, the task's parameters, with ``observe_goal=True`` only (an oracle);
        - ``"action"`` ``[N, A]`` float32 in [-1, 1], which stands for the range of each actuator;
        - ``"failed"`` ``[N, 1]`` bool, in environments that declare it: the body can go no further, has fallen over or
          broken; its episode ends, and goal-reaching levels value that at the least that they may;
        - ``"reward"`` ``[N, 1]`` float32; ``"done"``, ``"terminated"``, ``"truncated"`` ``[N, 1]`` bool, where
          truncated means that ``horizon`` steps were taken since the row's reset.

    Which task a row plays after a reset: the ``task_id`` in the tensordict given to ``reset``, for the rows being
    reset; without one, the task it had (``task_order="fixed"``) or a fresh draw (``"random"``). The automatic resets
    of rollouts and collectors hide everything but ``"_reset"``, so a task id left over from the last step never counts
    as given; a hand-made partial reset that passes the last step's tensordict does give it: leave ``"task_id"`` out
    there.

    Args:
        model: the compiled model, shared by all rows; a copy is kept, with MuJoCo's automatic reset off, so that a
            broken simulation shows NaN instead of silently starting over.
        library: the tasks; their parameters are what ``"goal"`` shows.
        num_envs: number of rows, N.
        tasks: int64 ids of the tasks that this environment plays.
        horizon: environment steps until truncation.
        frame_skip: simulation steps per environment step.
        observation_low: float ``[D]``, a bound that observations never pass; ``-inf`` where there is none.
        observation_high: float ``[D]``, likewise.
        goal_space: when a task's goal is achieved; ``None`` where tasks are no states to reach, such as directions.
        subgoal_space: what a higher level of a hierarchy may ask of a lower one, and when that is achieved.
        observe_goal: whether to show the goal.
        task_order: ``"fixed"``: row n starts with task ``tasks[n % len(tasks)]`` and keeps its task until told
            another; ``"random"``: a uniform draw from ``tasks`` at each reset.
        threads: threads that step the simulations; results do not depend on it.
        seed: of the environment's own draws; ``None`` follows ``torch.manual_seed``.
        not_finite: what a row that breaks does: ``"raise"`` an error that carries the other rows' step, or
            ``"truncate"`` that row alone, with a warning. A policy whose action is not finite always raises.

    The simulator is made at the first reset or step, in the process that uses it: factories of environments pickle,
    and no thread pool exists before a fork.

    Raises:
        ValueError: for arguments, actions or task ids that cannot be used.
        NotFiniteError: when an action, an observation or a reward is not finite.
        ImportError: at the first reset or step, when the installed MuJoCo is older than 4.
    """

    _stage: mujoco.mjtStage = mujoco.mjtStage.mjSTAGE_NONE
    """Forward stage to compute after steps and resets, for subclasses that observe derived fields."""

    _persistent: bool = False
    """Whether every row keeps a whole ``MjData``, for subclasses that read more of it than ``mujoco.batch`` binds."""

    fails: bool = False
    """Whether bodies may fail, which subclasses say by :meth:`_failed`; a row that breaks has failed, too."""

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
        goal_space: GoalSpace | None,
        subgoal_space: GoalSpace,
        observe_goal: bool = False,
        task_order: TaskOrder = "fixed",
        threads: int = 1,
        seed: int | None = None,
        not_finite: NotFinite = "raise",
    ) -> None:
        for name, value in (("horizon", horizon), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be >= 1")
        if not_finite not in NOT_FINITE:
            raise ValueError(f"not_finite = {not_finite!r}: must be one of {', '.join(NOT_FINITE)}")
        self._task_rows = TaskRows(library, num_envs, tasks, task_order)
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.model, self.library, self.horizon = copy.copy(model), library, horizon
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.goal_space, self.subgoal_space = goal_space, subgoal_space
        self.observe_goal = observe_goal
        self.not_finite: NotFinite = not_finite
        self._substeps, self._threads = frame_skip, threads
        #: seconds of an environment step
        self.dt = frame_skip * float(self.model.opt.timestep)
        self._batch: Batch | None = None
        self._bound: set[str] = set()
        self._steps = np.zeros((num_envs, 1), dtype=np.int64)
        self._set_seed(seed)
        self._make_specs(observation_low, observation_high)
        self._last = np.zeros((num_envs, self._dim), dtype=np.float32)  # observations, the finite ones

    def _make_specs(self, low: Tensor, high: Tensor) -> None:
        rows, self._dim = self.batch_size[0], len(low)
        wide = torch.Size([rows, self._dim])
        box = Bounded(low=low.float().expand(wide), high=high.float().expand(wide), shape=wide, dtype=torch.float32)
        action = Bounded(low=-1.0, high=1.0, shape=torch.Size([rows, self.model.nu]), dtype=torch.float32)
        failed = {"failed": Binary(n=1, shape=torch.Size([rows, 1]), dtype=torch.bool)} if self.fails else {}
        self._task_rows.set_specs(self, box, action, self.observe_goal, **failed)

    # What subclasses give.

    def _bind(self, batch: Batch) -> None:
        """Keeps the live arrays, ``batch.bind(field)``, that the other methods read and write."""
        raise NotImplementedError

    def _observe(self, out: np.ndarray) -> None:
        """Writes the observations into ``out``, float32 ``[N, D]``."""
        raise NotImplementedError

    def _reward(self, observation: Tensor) -> Tensor:
        """The reward ``[N, 1]`` float32 of having come to ``observation`` ``[N, D]`` by the controls ``self._ctrl``."""
        raise NotImplementedError

    def _terminated(self, observation: Tensor) -> Tensor | None:
        """Whether each row ended for good, bool ``[N, 1]``; ``None``: none did, as where nothing ever terminates."""
        return None

    def _failed(self, observation: Tensor) -> Tensor:
        """Whether the body of each row has failed, bool ``[N, 1]``; asked where :attr:`fails`."""
        raise NotImplementedError

    def _reset_state(self, rows: np.ndarray) -> None:
        """Writes the start state of ``rows`` into the bound arrays, which hold the model's own; for random starts.

        Draw from ``self._generator``.
        """

    def _after_reset(self, rows: np.ndarray) -> None:
        """What is done to all start states, after :meth:`_reset_state`."""

    def _load_tasks(self, rows: np.ndarray) -> None:
        """Writes what the tasks of ``rows`` change in the model, ``batch.expand(field)``; before their reset."""

    def _simulate(self, batch: Batch, rows: np.ndarray | None) -> None:
        """Advances ``rows`` (``None``: all) by one environment step; may keep what rewards need of the state before."""
        batch.step(rows, nstep=self._substeps, stage=int(self._stage))

    def goal_position(self, goal: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray | None:
        """Where a goal or subgoal ``[G]`` lies in the world, ``[3]`` in metres, for drawing; ``None``: nowhere.

        ``model`` and ``data`` are a copy of the row's simulation, which may be changed.
        """
        return None

    def stand_in(self) -> BatchedMujocoEnv | None:
        """A simpler world with the same tasks and rewards, whose optimum bounds this one's; ``None``: there is none.

        It is what :mod:`peach_trl.references` plays in: a body that has to learn to walk cannot be told where to go.
        """
        return None

    # EnvBase's own methods.

    def _advance(
        self, action: np.ndarray, moves: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], NotFiniteError | None]:
        rows = None if moves is None else np.flatnonzero(moves)
        batch, steps = self._batch or self._make_batch(), self._steps
        self._control(action)
        raised = self._simulate_all(batch, rows)
        if rows is None:
            steps += 1
        else:
            steps[rows] += 1
        values = self._read()
        observation = torch.from_numpy(values)
        reward, ended = self._reward(observation).numpy(), self._terminated(observation)
        if rows is not None:
            moved = np.isin(np.arange(len(steps)), rows)
            reward = reward * moved[:, None]
        truncated = steps >= self.horizon
        terminated = np.zeros(truncated.shape, dtype=np.bool_) if ended is None else ended.numpy()
        failed = self._failed(observation).numpy().copy() if self.fails else None
        if failed is not None:
            terminated = terminated | failed
        done = terminated | truncated
        error = self._find_broken(values, reward, raised)
        if error is not None:
            broken, reward = np.array(error.rows), reward.copy()
            values[broken], reward[broken] = self._last[broken], 0.0
            terminated[broken], truncated[broken], done[broken] = False, True, True
            if failed is not None:
                failed[broken] = True
            batch.reset(broken)
        self._last[:] = values
        ends = {"terminated": terminated, "truncated": truncated, "done": done}
        if failed is not None:
            ends["failed"] = failed
        return {"observation": values, "reward": reward, **ends}, error

    def restart(self, mask: Tensor | None = None, task_id: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`TaskEnv.restart`."""
        batch = self._batch or self._make_batch()
        rows = np.arange(self.batch_size[0]) if mask is None else np.flatnonzero(mask.reshape(-1).numpy())
        before = self._task_rows.task_id
        self._task_rows.assign(rows, task_id)
        if before is not self._task_rows.task_id:
            self._load_tasks(rows)
        batch.reset(rows, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        self._reset_state(rows)
        self._after_reset(rows)
        if self._stage != mujoco.mjtStage.mjSTAGE_NONE:
            batch.forward(rows, stage=int(self._stage))
        self._steps[rows] = 0
        values = self._read()
        broken = broken_rows(values)
        if len(broken):
            raise self._task_rows.not_finite_error("observation", broken, self._steps[broken, 0], "check their starts")
        self._last[:] = values
        result = {"observation": torch.from_numpy(values), **self._shown()}
        for name in ("done", "terminated", "truncated", *["failed"] * self.fails):
            result[name] = torch.zeros(len(self._steps), 1, dtype=torch.bool)
        return result

    def process_state(self) -> dict[str, Any]:
        """See :meth:`TaskEnv.process_state`; MuJoCo's state is its ``mjSTATE_INTEGRATION``."""
        batch = self._batch or self._make_batch()
        arrays = {"simulations": batch.state, "steps": self._steps, "last": self._last}
        return {
            **{name: torch.from_numpy(value.copy()) for name, value in arrays.items()},
            "tasks": self._task_rows.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` gave."""
        batch, rows = self._batch or self._make_batch(), np.arange(self.batch_size[0])
        self._task_rows.load_state_dict(state["tasks"])
        self._load_tasks(rows)
        batch.reset(rows, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        batch.state[:] = state["simulations"].numpy()
        if self._stage != mujoco.mjtStage.mjSTAGE_NONE:
            batch.forward(rows, stage=int(self._stage))
            batch.state[:] = state["simulations"].numpy()
        self._steps[:], self._last[:] = state["steps"].numpy(), state["last"].numpy()
        self._generator.set_state(state["generator"])

    def _set_seed(self, seed: int | None) -> None:
        self._generator = named_generator("environment", seed)
        self._task_rows.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulator."""
        for name in self._bound:  # these arrays are its memory
            delattr(self, name)
        self._batch, self._bound = None, set()
        super().close(raise_if_closed=raise_if_closed)

    # Beyond EnvBase.

    @property
    def tasks(self) -> Tensor:
        """The ids of the tasks that are played, int64 ``[n]``."""
        return self._task_rows.tasks

    @property
    def task_order(self) -> TaskOrder:
        """``"fixed"`` or ``"random"``."""
        return self._task_rows.task_order

    @property
    def _goal(self) -> Tensor:
        """The parameters of each row's task, float32 ``[N, P]``."""
        return self._task_rows.goal

    def simulation(self, row: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A copy of one row's model and state with all derived fields computed, for rendering or inspection."""
        batch = self._batch or self._make_batch()
        model, data = batch.get_model(row), batch.get_data(row)
        mujoco.mj_forward(model, data)
        return model, data

    def _make_batch(self) -> Batch:
        try:
            from mujoco.batch import Batch
        except ImportError as error:
            raise ImportError(
                f"mujoco {mujoco.__version__} cannot step simulations in batches: install mujoco>=3.17"
                " (pip install 'mujoco>=3.17'), or use an environment that needs no batches"
            ) from error
        batch = Batch(self.model, self.batch_size[0], self._threads, self._persistent)
        self._ctrl = batch.bind("ctrl")
        low, high = self.model.actuator_ctrlrange.T
        unit = not self.model.nu or (np.all(low == -1) and np.all(high == 1))
        self._ctrl_range = None if unit else ((low + high) / 2, (high - low) / 2)
        before = set(vars(self)) - {"_ctrl"}
        self._bind(batch)
        self._batch, self._bound = batch, set(vars(self)) - before
        self._load_tasks(np.arange(self.batch_size[0]))
        return batch

    def _control(self, action: np.ndarray) -> None:
        """Writes actions in [-1, 1] as controls; nothing is stepped where one is not finite."""
        rows = broken_rows(action)
        if len(rows):
            raise self._task_rows.not_finite_error(
                "action", rows, self._steps[rows, 0] + 1, "check the policy; no row was stepped"
            )
        self._ctrl[:] = action
        if self._ctrl_range is not None:
            middle, half = self._ctrl_range
            np.multiply(self._ctrl, half, out=self._ctrl)
            np.add(self._ctrl, middle, out=self._ctrl)

    def _read(self) -> np.ndarray:
        """Fresh observations ``[N, D]``."""
        values = np.empty((len(self._steps), self._dim), dtype=np.float32)
        self._observe(values)
        return values

    def _simulate_all(self, batch: Batch, rows: np.ndarray | None) -> np.ndarray:
        """Steps, and returns the rows in which MuJoCo itself raised."""
        try:
            self._simulate(batch, rows)
        except RuntimeError as error:  # mujoco.batch.SimulationError lists the rows, which kept their state
            if not hasattr(error, "ids"):
                raise
            return np.asarray(error.ids, dtype=np.int64)
        return _NO_ROWS

    def _find_broken(self, values: np.ndarray, reward: np.ndarray, raised: np.ndarray) -> NotFiniteError | None:
        in_observation, in_reward = broken_rows(values), broken_rows(reward)
        if not (len(in_observation) or len(in_reward) or len(raised)):
            return None
        key = "observation" if len(in_observation) or len(raised) else "reward"
        rows = np.union1d(np.union1d(in_observation, in_reward), raised)
        return self._task_rows.not_finite_error(
            key, rows, self._steps[rows, 0], "check the actions, or shorten the model's timestep"
        )
