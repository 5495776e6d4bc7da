"""Which task each row of a batched environment plays, and which it plays after a reset."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from peach_trl.envs.errors import NotFiniteError
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.seeding import named_generator

TaskOrder = Literal["fixed", "random"]


class TaskRows:
    """The task ids of N rows.

    After a reset a row plays the task that it is given; without one, the task that it had (``task_order="fixed"``) or
    a fresh draw (``"random"``).

    Args:
        library: the tasks.
        num_envs: number of rows, N.
        tasks: int64 ids of the tasks that are played.
        task_order: ``"fixed"``: row n starts with task ``tasks[n % len(tasks)]`` and keeps it until told another;
            ``"random"``: a uniform draw from ``tasks`` at each reset.

    Attributes:
        tasks: the ids that are played, int64 ``[n]``.
        task_id: int64 ``[N, 1]``, what each row plays now; replaced, never written into.
        goal: float32 ``[N, P]``, the parameters of these tasks; likewise.

    Raises:
        ValueError: for ids outside of the library and for wrong shapes or types, naming them.

    Examples:
        >>> library = TaskLibrary(torch.tensor([[1.0], [2.0], [3.0]]), {"train": torch.tensor([0, 1])})
        >>> rows = TaskRows(library, num_envs=3, tasks=library.split("train"))
        >>> rows.assign(np.array([2]), given=torch.tensor([0, 0, 2]))
        >>> rows.task_id[:, 0], rows.goal[:, 0]
        (tensor([0, 1, 2]), tensor([1., 2., 3.]))
    """

    def __init__(self, library: TaskLibrary, num_envs: int, tasks: Tensor, task_order: TaskOrder = "fixed") -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs}: must be >= 1")
        if task_order not in ("fixed", "random"):
            raise ValueError(f"task_order = {task_order!r}: must be 'fixed' or 'random'")
        self.library = library
        self.task_order: TaskOrder = task_order
        self.tasks = torch.as_tensor(tasks, dtype=torch.int64).clone()
        self._check(self.tasks, "tasks")
        if self.tasks.ndim != 1 or not len(self.tasks):
            raise ValueError(f"tasks of shape {tuple(self.tasks.shape)}: give a non-empty 1-D tensor of ids")
        self._set(self.tasks[torch.arange(num_envs) % len(self.tasks)].unsqueeze(-1))

    def set_seed(self, seed: int | None) -> None:
        """Seeds the draws of ``task_order="random"``."""
        self._generator = named_generator("tasks of rows", seed)

    def assign(self, rows: np.ndarray, given: Tensor | None) -> None:
        """Decides what the reset ``rows`` [R] play from now on.

        Args:
            rows: the rows that are being reset.
            given: int64 ``[N]`` or ``[N, 1]``, one id for every row, of which only those of ``rows`` count; ``None``
                leaves it to ``task_order``.
        """
        index = torch.from_numpy(rows)
        if given is not None:
            if given.shape not in (self.task_id.shape[:1], self.task_id.shape):
                shape = tuple(self.task_id.shape)
                raise ValueError(f"task_id of shape {tuple(given.shape)}: must be {shape[:1]} or {shape}, one id a row")
            if given.dtype != torch.int64:
                raise ValueError(f"task_id of dtype {given.dtype}: must be torch.int64; use task_id.long()")
            chosen = given.reshape(-1)[index]
            self._check(chosen, "task_id")
        elif self.task_order == "random":
            chosen = self.tasks[torch.randint(len(self.tasks), (len(index),), generator=self._generator)]
        else:
            return
        task_id = self.task_id.clone()
        task_id[index, 0] = chosen
        self._set(task_id)

    def state_dict(self) -> dict[str, Tensor]:
        """The tasks that rows play, and the state of the generator."""
        return {"task_id": self.task_id, "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._generator.set_state(state_dict["generator"])
        self._set(state_dict["task_id"])

    def set_specs(
        self, env: EnvBase, observation: TensorSpec, action: TensorSpec, observe_goal: bool, **more: TensorSpec
    ) -> None:
        """Gives ``env`` the specs of an environment whose rows play tasks.

        Args:
            env: the environment, of batch size ``[N]``.
            observation: spec of ``"observation"`` ``[N, D]``.
            action: spec of ``"action"`` ``[N, A]``.
            observe_goal: whether the task's parameters are observed, as ``"goal"``.
            more: specs of further observations.
        """
        shape, single = env.batch_size, self.task_id.shape
        task_id = Categorical(n=self.library.num_tasks, shape=single, dtype=torch.int64)
        observed = Composite({"observation": observation, "task_id": task_id, **more}, shape=shape)
        if observe_goal:
            observed["goal"] = Unbounded(shape=self.goal.shape, dtype=torch.float32)
        env.observation_spec = observed
        env.state_spec = Composite(task_id=task_id.clone(), shape=shape)
        env.action_spec = action
        env.reward_spec = Unbounded(shape=single, dtype=torch.float32)
        flags = {name: Categorical(2, shape=single, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        env.done_spec = Composite(flags, shape=shape)

    def not_finite_error(self, key: str, rows: np.ndarray, steps: np.ndarray, remedy: str) -> NotFiniteError:
        """The error for ``key`` of ``rows`` [R] that broke at ``steps`` [R] of their episodes."""
        return NotFiniteError(key, rows.tolist(), self.task_id[rows, 0].tolist(), steps.tolist(), remedy)

    def _set(self, task_id: Tensor) -> None:
        self.task_id, self.goal = task_id, self.library.parameters[task_id[:, 0]]

    def _check(self, ids: Tensor, name: str) -> None:
        wrong = ids[(ids < 0) | (ids >= self.library.num_tasks)].unique().tolist()
        if wrong:
            last = self.library.num_tasks - 1
            raise ValueError(f"{name}: ids {wrong} are out of range; the library's ids are 0..{last}")
