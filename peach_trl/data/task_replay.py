"""Replay partitioned by task: the buffers B^i of PEACH's Algorithm 1 in one flat TorchRL storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage
from torchrl.envs import Transform

from peach_trl.data.storages import Partitioned, PartitionedStorage
from peach_trl.data.task_writer import TaskWriter, dump_state, episodes_of
from peach_trl.seeding import named_generator


class TaskSampler(Sampler):
    """Draws rows of an explicit list of tasks, as many for each.

    Args:
        writer: the writer of the same buffer, which knows what is held.
        generator: the source of all draws; saved with the sampler's state.
        tasks: int64 [M], the tasks of :meth:`sample`; None for all.
    """

    def __init__(self, writer: TaskWriter, generator: torch.Generator, tasks: Tensor | None = None) -> None:
        if generator is torch.default_generator:
            raise ValueError("the global generator would tie replay to all other draws: use named_generator(name)")
        self.writer, self.generator = writer, generator
        every = torch.arange(writer.num_tasks)
        if writer.partitions is not None:  # an id of each partition
            every = torch.stack([(writer.partitions == part).nonzero()[0, 0] for part in every])
        self.tasks = every if tasks is None else torch.as_tensor(tasks)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """Rows for ``self.tasks``, int64 [batch_size]: the first ``batch_size / M`` are of the first task, and so on.

        Raises:
            ValueError: if ``batch_size`` is not a multiple of the number of tasks, or a task holds no rows.
        """
        tasks = torch.as_tensor(self.tasks)
        self.writer.partition(tasks)  # refuses what are no ids
        if not len(tasks) or batch_size % len(tasks):
            raise ValueError(f"batch_size = {batch_size}: must be a multiple of the number of tasks, {len(tasks)}")
        return self.rows(tasks, batch_size // len(tasks)).reshape(-1), {}

    def rows(
        self, tasks: Tensor, batch: int, *, best_fraction: float = 0.0, best_of: int = 1, recent: int | None = None
    ) -> Tensor:
        """Rows of the storage, int64 [M, batch]; see :meth:`TaskReplayBuffer.sample_tasks`."""
        writer, ids, held = self.writer, tasks.tolist(), self._check(tasks)
        tasks = writer.partition(tasks)
        if not 0 <= best_fraction <= 1 or best_of < 1:
            raise ValueError(
                f"best_fraction = {best_fraction}, best_of = {best_of}: need 0 <= best_fraction <= 1 <= best_of"
            )
        index = self._below(held, len(ids), batch) + (tasks * writer.capacity)[:, None]
        best = round(batch * best_fraction)
        if best:
            available = writer.available(tasks, recent)
            chosen = writer.best(tasks, self._below(available, len(ids), best, best_of))
            start, length = writer.look_up(tasks, chosen)
            rows = writer.locate(tasks[:, None], start + self._below(length, len(ids), best))
            index[:, :best] = torch.where(available[:, None] > 0, rows, index[:, :best])
        return index

    def _check(self, tasks: Tensor) -> Tensor:
        """How many rows tasks hold, int64 [M]; refuses those that hold none."""
        held = self.writer.held(self.writer.partition(tasks))
        if 0 in (counts := held.tolist()):
            task = tasks.tolist()[counts.index(0)]
            raise ValueError(f"task {task} holds no rows: collect data for it and extend the buffer before sampling")
        return held

    def info(self, rows: Tensor) -> dict[str, Tensor]:
        """What batches of these rows, int64 [M, batch], say of them besides the stored keys."""
        return {}

    def _below(self, limit: Tensor, *shape: int) -> Tensor:
        return integers_below(limit, shape, self.generator)

    def can_sample(self, storage: Storage, batch_size: int) -> bool:
        """Whether every task of ``self.tasks`` holds rows."""
        held = self.writer.held(self.writer.partition(self.tasks))
        return batch_size % len(self.tasks) == 0 and bool((held > 0).all())

    def _empty(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """The list of tasks and the state of the generator."""
        return {"tasks": torch.as_tensor(self.tasks).clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.tasks = state_dict["tasks"].clone()
        self.generator.set_state(state_dict["generator"])

    def dumps(self, path: str | Path) -> None:
        """Saves the state in the folder ``path``."""
        dump_state(self.state_dict(), path, "task_sampler.pt")

    def loads(self, path: str | Path) -> None:
        """Loads the state from the folder ``path``."""
        self.load_state_dict(torch.load(Path(path) / "task_sampler.pt", weights_only=True))


class TaskReplayBuffer(TensorDictReplayBuffer):
    """A replay buffer for each task (B^i of PEACH's Algorithm 1), kept in one storage.

    Args:
        num_tasks: number of tasks T; task ids are 0 .. T - 1.
        capacity: rows held per task; the oldest are overwritten first.
        episodes: how many of the last episodes of each task are remembered, for contexts and for draws from the best
            episodes; 0 tracks none. With ``num_tasks=1`` and ``episodes=0``, rows of all tasks share the one partition.
        seed: seed of the generator named "replay"; used where no generator is given.
        generator: source of all draws. It must not be torch's global one.
        batch_size: rows per :meth:`sample`; None takes it from the call.
        partitions: int64 [ids], the partition 0 .. T - 1 of each task id, -1 for ids that have none, as those that are
            not trained on; several ids may share one. None where task ids are partitions.
        seeds: of how many agents this is the replay; task ids come in so many equal groups, see :meth:`draw_tasks`.
        storage: makes the storage of so many rows, such as :class:`PartitionedMemmapStorage`.
        sampler: makes the sampler of a writer and a generator, such as
            :class:`~peach_trl.data.prioritized.PrioritizedTaskSampler`.
        transform: of TorchRL's; it is applied to all that is drawn. Its inverse, to rows that are written.
        priority_key: what :meth:`update_tensordict_priority` reads, where draws go by priority.

    ``len(buffer)`` is the number of rows held. ``sample`` draws for the list ``buffer.sampler.tasks``;
    :meth:`sample_tasks` takes the list itself and is faster, since it goes past TorchRL's hooks.

    Examples:
        >>> from tensordict import TensorDict
        >>> buffer = TaskReplayBuffer(num_tasks=3, capacity=100, seed=0)
        >>> rows = TensorDict({"task_id": torch.tensor([[0], [2], [2]]), "x": torch.tensor([5.0, 7.0, 7.0])}, [3])
        >>> _ = buffer.extend(rows)
        >>> buffer.count()
        tensor([1, 0, 2])
        >>> buffer.sample_tasks(torch.tensor([2, 0]), batch=4)["x"]
        tensor([[7., 7., 7., 7.],
                [5., 5., 5., 5.]])
        >>> buffer.sample_tasks(torch.tensor([1]), batch=4)
        Traceback (most recent call last):
        ...
        ValueError: task 1 holds no rows: collect data for it and extend the buffer before sampling
    """

    _storage: Partitioned  # type: ignore[assignment]
    _writer: TaskWriter
    _sampler: TaskSampler

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        *,
        episodes: int = 0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        partitions: Tensor | None = None,
        seeds: int = 1,
        storage: Callable[[int], Partitioned] = PartitionedStorage,
        sampler: Callable[[TaskWriter, torch.Generator], TaskSampler] = TaskSampler,
        transform: Transform | None = None,
        priority_key: str = "td_error",
    ) -> None:
        for name, part in (("storage", storage), ("sampler", sampler)):
            if not callable(part):
                raise TypeError(
                    f"{name} = {type(part).__name__}: give the class, or a function that makes one, as it is made here "
                    "for all tasks; functools.partial sets its arguments"
                )
        writer = TaskWriter(num_tasks, capacity, episodes, partitions)
        parts: dict[str, Any] = {
            "storage": storage(num_tasks * capacity),
            "writer": writer,
            "sampler": sampler(writer, named_generator("replay", seed) if generator is None else generator),
        }
        if not isinstance(parts["storage"], Partitioned):
            raise TypeError(
                f"storage = {storage}: rows are written in any order; use PartitionedStorage or "
                "PartitionedMemmapStorage, or put the base class Partitioned before a storage of TorchRL's"
            )
        super().__init__(**parts, transform=transform, batch_size=batch_size, priority_key=priority_key)
        self.seeds = seeds

    def __len__(self) -> int:
        return int(self.count().sum())

    @property
    def storage(self) -> Partitioned:  # type: ignore[override]
        """The storage of all rows."""
        return self._storage

    @property
    def writer(self) -> TaskWriter:
        """The writer: cursors and the table of episodes."""
        return self._writer

    @property
    def sampler(self) -> TaskSampler:
        """The sampler: ``sampler.tasks`` is the list of tasks that ``sample`` draws for."""
        return self._sampler

    def set_rng(self, generator: torch.Generator | None) -> None:
        """Makes ``generator`` the source of all draws; None keeps the present one."""
        super().set_rng(None)  # the sampler saves and restores the generator itself
        if generator is not None:
            self._sampler.generator = generator

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Writes rows, each to the ring of its task.

        Args:
            tensordicts: flat [R], of any order of tasks and with any further keys, or a collector's [N, T]. "task_id"
                int64 [R, 1] (may be missing where ``num_tasks`` is 1). Where episodes are tracked, also ("next",
                "reward") [R, 1], and what tells the episodes of this call apart: "episode" int64 [R, 1], or else
                ("collector", "traj_ids"), or else ("next", "done") of one episode after the other; if there are any,
                "transition_type" int64 [R, 1], 0 for real transitions, 1 for hindsight goals and 2 for penalties of
                subgoal tests; and "meta_episode" int64 [R, 1]. The rows of an episode come in order of time and all in
                one call.
            update_priority: unused, TorchRL's.

        Returns:
            Row of the storage for each row given, int64 [R]; -1 where a task brought more rows than its capacity, of
            which only the last are kept.

        Raises:
            IndexError: for an unknown task id.
            ValueError: if keys are missing or differ from those of earlier calls, or the shape is another.
        """
        rows = tensordicts.copy()
        if rows.ndim == 2:
            if self._writer.episodes and "episode" not in rows.keys() and ("next", "done") in rows.keys(True):
                rows["episode"] = episodes_of(rows)
            rows = rows.reshape(-1)
        return super().extend(rows, update_priority=False)

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """As in TorchRL, for rows of any shape: TorchRL's takes [M, batch] for M sequences with a priority each."""
        super().update_tensordict_priority(data.reshape(-1))

    def sample_tasks(
        self, tasks: Tensor, batch: int, *, best_fraction: float = 0.0, best_of: int = 1, recent: int | None = None
    ) -> TensorDictBase:
        """Draws RL batches b^i ~ B^i, uniformly with replacement.

        Args:
            tasks: int64 [M], the tasks i, by id.
            batch: rows per task.
            best_fraction: share of the rows (rounded; they come first) drawn from good episodes: each row from the one
                of highest return among ``best_of`` drawn from the task's last episodes, real rows only. A task without
                usable episodes gets uniform rows.
            best_of: how many episodes compete for each such row.
            recent: how many of the last usable episodes they are drawn from; None for all that are remembered.

        Returns:
            The stored keys, shape [M, batch].

        Raises:
            ValueError: if a task holds no rows, or for options out of range.
            IndexError: for an unknown task id.
        """
        rows = self._sampler.rows(
            torch.as_tensor(tasks), batch, best_fraction=best_fraction, best_of=best_of, recent=recent
        )
        return self._drawn(rows)

    def _drawn(self, rows: Tensor) -> TensorDictBase:
        found = self.read(rows)
        for key, value in self._sampler.info(rows).items():
            found.set(key, value)
        return found

    def read(self, rows: Tensor) -> TensorDictBase:
        """The given rows of the storage, int64 of any shape, through the transforms, if there are any."""
        found = self._storage.read(rows)
        return found if not self._transform else self._transform(found)

    def count(self, tasks: Tensor | None = None) -> Tensor:
        """Rows held per task, int64 [M]; for all tasks where ``tasks`` is None."""
        if tasks is None:
            return self._writer.written.clamp(max=self._writer.capacity)
        return self._writer.held(self._writer.partition(torch.as_tensor(tasks)))

    def batches(self, batch: int, number: int, at_once: int = 64) -> Iterator[TensorDictBase]:
        """So many batches for as many updates: those that ``sample_tasks(sampler.tasks, batch)`` draws, flat.

        Args:
            batch: rows of each task.
            number: of batches.
            at_once: how many are drawn and read in one go, which costs little more than one of them.

        Returns:
            An iterator over the stored keys, [M * batch] each, the first task's rows first.

        Examples:
            >>> buffer = TaskReplayBuffer(num_tasks=2, capacity=10, seed=0)
            >>> x = TensorDict({"task_id": torch.tensor([[0], [1]]), "x": torch.tensor([5, 7])}, [2])
            >>> _ = buffer.extend(x)
            >>> [rows["x"].tolist() for rows in buffer.batches(batch=2, number=2)]
            [[5, 5, 7, 7], [5, 5, 7, 7]]
        """
        tasks = torch.as_tensor(self._sampler.tasks)
        for start in range(0, number, at_once):
            count = min(at_once, number - start)
            rows = self._sampler.rows(tasks, count * batch).view(len(tasks), count, batch).transpose(0, 1).flatten(1)
            yield from one_by_one(self._drawn(rows))

    def draw_tasks(self, tasks: Tensor, count: int, number: int | None = None) -> Tensor:
        """Draws a meta-batch of ``count`` of the given tasks, without replacement: int64 [count].

        With several seeds, ``tasks`` are those of the first, then those of the second, and so on; so many are drawn for
        each, [seeds * count]. With a ``number``, so many meta-batches, [number, seeds * count].

        Raises:
            IndexError: for an unknown task id.
            ValueError: if ``count`` exceeds the number of tasks.

        Examples:
            >>> TaskReplayBuffer(9, 10, seed=0).draw_tasks(torch.tensor([3, 5, 8]), 3).sort().values
            tensor([3, 5, 8])
        """
        tasks = torch.as_tensor(tasks)
        self._writer.partition(tasks)  # refuses what are no ids
        if len(tasks) % self.seeds:
            raise ValueError(
                f"{len(tasks)} tasks for seeds = {self.seeds}: give as many of each, the first one's first"
            )
        tasks = tasks.view(self.seeds, -1)
        if not 0 <= count <= tasks.shape[1]:
            raise ValueError(
                f"cannot draw {count} of {tasks.shape[1]} tasks without replacement: lower the meta-batch or add tasks"
            )
        noise = torch.rand(number or 1, *tasks.shape, generator=self._sampler.generator)
        drawn = tasks.expand(number or 1, -1, -1).gather(2, noise.argsort(-1)[..., :count]).flatten(1)
        return drawn if number is not None else drawn[0]


def one_by_one(batches: TensorDictBase) -> Iterator[TensorDictBase]:
    """Batches [number, ...] one after the other, as ``unbind`` gives them, but faster."""
    columns = {key: column.unbind(0) for key, column in batches.items() if key != "next"}
    after = {key: column.unbind(0) for key, column in batches.get("next", {}).items()}
    shape = batches.shape[1:]
    for i in range(len(batches)):
        rows: dict[str, Any] = {key: column[i] for key, column in columns.items()}
        if after:
            rows["next"] = TensorDict({key: column[i] for key, column in after.items()}, shape)
        yield TensorDict(rows, shape)


def integers_below(limit: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform integers in 0 .. limit - 1 (0 where limit is 0), int64 of ``shape``.

    Args:
        limit: int64; its dimensions are the leading ones of ``shape``.
        shape: shape of the draw.
        generator: source of the draw.
    """
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    return (uniform * limit.view(limit.shape + (1,) * (len(shape) - limit.ndim))).long()
