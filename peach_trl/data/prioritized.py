"""Prioritised draws from a replay partitioned by task: each task's rows by their priorities (Schaul et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers.samplers import PrioritizedSampler

from peach_trl.data.task_replay import TaskSampler
from peach_trl.data.task_writer import TaskWriter


class PrioritizedTaskSampler(TaskSampler, PrioritizedSampler):
    """A :class:`TaskSampler` that draws a task's rows in proportion to (priority + eps)^alpha.

    Priorities are TorchRL's: new rows have the highest so far, a loss writes ``td_error`` into the batch, and
    ``buffer.update_tensordict_priority(batch)`` hands it over. Batches have ``index``, the rows of the storage, and
    ``priority_weight``, (p / the least p of the same task)^-beta, which TorchRL's losses weigh rows with. Source:
    Schaul et al. 2016, Prioritized Experience Replay, arXiv 1511.05952, section 3.

    Args:
        writer: the writer of the same buffer.
        generator: the source of all draws.
        tasks: int64 [M], the tasks of :meth:`sample`; None for all.
        alpha: how much priorities count, 0: not at all.
        beta: how much of the bias is corrected by weights, 1: all.
        eps: added to priorities, so that no row is lost.

    Examples:
        >>> from functools import partial
        >>> from tensordict import TensorDict
        >>> from peach_trl.data import TaskReplayBuffer
        >>> buffer = TaskReplayBuffer(2, capacity=9, seed=0, sampler=partial(PrioritizedTaskSampler, alpha=1.0))
        >>> _ = buffer.extend(TensorDict({"task_id": torch.tensor([[0], [0], [1]]), "x": torch.arange(3)}, [3]))
        >>> batch = buffer.sample_tasks(torch.tensor([0]), 8).reshape(-1)
        >>> batch["td_error"] = batch["x"].float()  # 0 and 1
        >>> buffer.update_tensordict_priority(batch)
        >>> buffer.sample_tasks(torch.tensor([0]), 8)["x"].tolist()
        [[1, 1, 1, 1, 1, 1, 1, 1]]
    """

    def __init__(
        self,
        writer: TaskWriter,
        generator: torch.Generator,
        tasks: Tensor | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-8,
    ) -> None:
        PrioritizedSampler.__init__(self, writer.num_tasks * writer.capacity, alpha, beta, eps)
        TaskSampler.__init__(self, writer, generator, tasks)

    def extend(self, index: Tensor) -> None:
        """Gives new rows the highest priority so far."""
        PrioritizedSampler.extend(self, index)
        self.update_priority(index, self.default_priority)

    def add(self, index: Tensor | int) -> None:
        """The same for one row."""
        self.extend(torch.as_tensor(index).reshape(-1))

    def update_priority(self, index: Any, priority: Any, **kwargs: Any) -> None:
        """TorchRL's, of numbers that are priorities.

        Raises:
            ValueError: if one is not finite, or less than 0: it would spoil all draws; nothing is written.
        """
        values = torch.as_tensor(priority)
        wrong = values[~((values >= 0) & values.isfinite())]
        if len(wrong):
            raise ValueError(
                f"priority {wrong[0].item()}: must be finite and at least 0; look at what writes it, a loss perhaps"
            )
        super().update_priority(index, priority, **kwargs)

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict]:  # type: ignore[override]
        """See :meth:`TaskSampler.sample`; with the weights."""
        rows, _ = TaskSampler.sample(self, storage, batch_size)
        return rows, {"priority_weight": self._weights(rows)}

    def rows(
        self, tasks: Tensor, batch: int, *, best_fraction: float = 0.0, best_of: int = 1, recent: int | None = None
    ) -> Tensor:
        """Rows of the storage, int64 [M, batch], by priority.

        Raises:
            ValueError: with ``best_fraction``, which draws by other means.
        """
        if best_fraction:
            raise ValueError(f"best_fraction = {best_fraction}: rows are drawn by priority here; set it to 0")
        self._check(tasks)
        drawn = torch.rand(len(tasks), batch, generator=self.generator)
        parts = self.writer.partition(tasks).tolist()
        return torch.stack([self._scan(part, u) for part, u in zip(parts, drawn, strict=True)])

    def _scan(self, part: int, u: Tensor) -> Tensor:
        """Rows of one partition where so much of its mass lies, u in [0, 1): int64 of u's shape."""
        first, end = self._span(part)
        before = self._sum_tree.query(0, first) if first else 0.0
        rows = torch.as_tensor(self._sum_tree.scan_lower_bound(before + u * self._sum_tree.query(first, end)))
        held = min(int(self.writer.written[part]), self.writer.capacity)
        return rows.clamp(first, first + held - 1)  # the tree's sums are rounded

    def _span(self, part: int) -> tuple[int, int]:
        return part * self.writer.capacity, (part + 1) * self.writer.capacity

    def info(self, rows: Tensor) -> dict[str, Tensor]:
        """What a batch says of its rows."""
        return {"index": rows, "priority_weight": self._weights(rows)}

    def _weights(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1)
        part, inverse = (flat // self.writer.capacity).unique(return_inverse=True)
        least = torch.tensor([self._min_tree.query(*self._span(one)) for one in part.tolist()])
        held = torch.as_tensor(self._sum_tree[flat])
        return (held / least[inverse]).pow(-self._beta).view(rows.shape)

    def _empty(self) -> None:
        PrioritizedSampler._empty(self)

    def state_dict(self) -> dict[str, Any]:
        """The list of tasks, the state of the generator, and all priorities."""
        held = torch.as_tensor(self._sum_tree[torch.arange(self._max_capacity)])
        highest, where = (None if part is None else float(part) for part in self._max_priority)
        values = {"held": held.clone(), "alpha": self._alpha, "beta": self._beta, "eps": self._eps}
        return {**TaskSampler.state_dict(self), **values, "highest": highest, "where": where}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Raises:
            ValueError: if it is of another number of rows.
        """
        held = state_dict["held"]
        if len(held) != self._max_capacity:
            raise ValueError(f"saved with {len(held)} rows, but this buffer has {self._max_capacity}")
        TaskSampler.load_state_dict(self, state_dict)
        self._alpha, self._beta, self._eps = (state_dict[name] for name in ("alpha", "beta", "eps"))
        self._init()
        known = held.nonzero().squeeze(-1)
        if len(known):
            self._sum_tree[known] = held[known]
            self._min_tree[known] = held[known]
        highest, where = state_dict["highest"], state_dict["where"]
        priority: Any = (
            None if highest is None else torch.tensor(highest),
            None if where is None else torch.tensor(int(where)),
        )
        self._max_priority = priority
