"""The writer behind replay partitioned by task: rings of rows, and a table of episodes.

Task i owns the rows [i * capacity, (i + 1) * capacity) of one flat storage as a ring. Positions are counted in rows
ever written for the task ("absolute"); absolute position p lies in row i * capacity + p % capacity until overwritten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data.replay_buffers.writers import Writer

from peach_trl.data.storages import Partitioned

#: Keys of rows that tell episodes apart, the first that is there: ours, that of TorchRL's collectors, the end of each.
EPISODE_KEYS: tuple[NestedKey, ...] = ("episode", ("collector", "traj_ids"), ("next", "done"))
COLUMNS = ("task_id", "episode", "transition_type", "meta_episode")  # a whole number for each row


def episodes_of(data: TensorDictBase) -> Tensor:
    """A number for the episode of each row, int64 [..., 1], from the first of :data:`EPISODE_KEYS` that there is.

    Args:
        data: [R], one episode after the other, or [N, T], of which each row of T steps begins a new one.

    Examples:
        >>> done = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.bool).unsqueeze(-1)
        >>> episodes_of(TensorDict({"next": TensorDict({"done": done}, [2, 3])}, [2, 3]))[..., 0]
        tensor([[0, 0, 1],
                [2, 2, 2]])
    """
    for key in EPISODE_KEYS[:2]:
        if (number := data.get(key, None)) is not None:
            return number.reshape(*data.shape, 1)
    ends = data["next", "done"].reshape(*data.shape, 1).clone()
    if data.ndim == 2:
        ends[:, -1] = True
    ends = ends.flatten().long()
    return (ends.cumsum(0) - ends).view(*data.shape, 1)


class TaskWriter(Writer):
    """Writes each row to the ring of its task and keeps a table of the last episodes of each task.

    Args:
        num_tasks: number of tasks T; task ids are 0 .. T - 1.
        capacity: rows held per task.
        episodes: episodes E that the table remembers per task; 0 keeps no table.
        partitions: int64 [ids], the partition of each task id, -1 for ids that have none; ``None`` where ids are the
            partitions.

    Attributes:
        written: int64 [T], rows ever written per task.
        seen: int64 [T], episodes ever entered in the table per task.
        usable: int64 [T], remembered episodes of which no row has been overwritten; always the latest ones.

    Examples:
        >>> from tensordict import TensorDict
        >>> from peach_trl.data import PartitionedStorage
        >>> writer = TaskWriter(num_tasks=2, capacity=3)
        >>> writer.register_storage(PartitionedStorage(6))
        >>> writer.extend(TensorDict({"task_id": torch.tensor([[1], [0], [1]])}, [3]))
        tensor([3, 0, 4])
    """

    _storage: Partitioned  # type: ignore[assignment]

    def __init__(self, num_tasks: int, capacity: int, episodes: int = 0, partitions: Tensor | None = None) -> None:
        super().__init__()
        if num_tasks < 1 or capacity < 1 or episodes < 0:
            raise ValueError(
                f"num_tasks = {num_tasks}, capacity = {capacity}, episodes = {episodes}: need num_tasks >= 1, "
                "capacity >= 1 and episodes >= 0"
            )
        self.num_tasks, self.capacity, self.episodes = num_tasks, capacity, episodes
        if partitions is not None and (int(partitions.min()) < -1 or int(partitions.max()) >= num_tasks):
            raise ValueError(
                f"partitions: must lie in -1 .. num_tasks - 1 = {num_tasks - 1}, -1 for ids that have none"
            )
        self.partitions = partitions
        self._write_count = 0
        self.written = torch.zeros(num_tasks, dtype=torch.int64)
        self.seen = torch.zeros(num_tasks, dtype=torch.int64)
        self.usable = torch.zeros(num_tasks, dtype=torch.int64)
        self._start = torch.full((num_tasks, episodes), -1, dtype=torch.int64)
        self._length = torch.zeros(num_tasks, episodes, dtype=torch.int64)
        self._returns = torch.zeros(num_tasks, episodes, dtype=torch.float64)
        self._meta = torch.full((num_tasks, episodes), -1, dtype=torch.int64)

    def add(self, data: TensorDictBase) -> int:  # type: ignore[override]
        """Writes one row, as an episode of its own where episodes are tracked; returns its row in the storage."""
        return int(self.extend(data.unsqueeze(0))[0])

    def extend(self, data: TensorDictBase) -> Tensor:  # type: ignore[override]
        """Writes rows; see :meth:`TaskReplayBuffer.extend`."""
        if data.ndim != 1:
            raise ValueError(f"rows of shape {tuple(data.shape)}: must be flat, shape [R]; call .reshape(-1) first")
        if not len(data):
            return torch.zeros(0, dtype=torch.int64)
        if any(value.device != self._storage.device for value in data.values(True, True)):
            data = data.to(self._storage.device)
        self._check_keys(data)
        self._check_values(data)
        self._check_shapes(data)
        task, columns = self._task_of(data), self._columns(data)
        order = self._order(columns, task)
        task = task[order]
        counts = torch.bincount(task, minlength=self.num_tasks)
        rank = _rank(task, counts)
        position = self.written[task] + rank
        kept = rank >= (counts - self.capacity)[task]
        index = torch.empty_like(order)
        index[order] = torch.where(kept, self.locate(task, position), -1)
        if bool(kept.all()):
            self._storage.set(index, data)  # type: ignore[arg-type]
        else:
            held = index >= 0
            self._storage.set(index[held], data[held])  # type: ignore[arg-type]
        self.written += counts
        self._write_count += len(data)
        if self.episodes:
            self._record(columns[order], task, position)
        return index

    def _check_keys(self, data: TensorDictBase) -> None:
        keys = set(data.keys(True, True))
        needed: set[Any] = {("next", "reward")} if self.episodes else set()
        if self.episodes and keys.isdisjoint(EPISODE_KEYS):
            needed |= {"episode"}
        known = self._storage.keys or keys | needed
        missing, extra = (known | needed) - keys, keys - known
        if missing or extra:
            raise ValueError(
                f"rows lack the keys {sorted(map(str, missing))} and bring the unknown keys {sorted(map(str, extra))}: "
                'every call must bring the keys of the first one, and where episodes are tracked ("next", "reward") '
                f"and one of {', '.join(map(str, EPISODE_KEYS))}"
            )

    def _check_shapes(self, data: TensorDictBase) -> None:
        """Refuses columns that are no columns, and states that are not alike before and after; also of first rows."""
        for key in (*COLUMNS, ("next", "reward")):
            value = data.get(key, None)
            if value is None:
                continue
            if value.shape != (len(data), 1):
                raise ValueError(f"{_named(key, value)}: one for each of the {len(data)} rows is needed, [R, 1]")
            if key in COLUMNS and (value.is_floating_point() or value.dtype == torch.bool):
                raise ValueError(f"{key} of type {value.dtype}: must be whole numbers, int64")
        for key, after in data.get("next", {}).items():
            before = data.get(key, None)
            if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.shape != after.shape:
                raise ValueError(
                    f"{_named(('next', key), after)} and {_named(key, before)}: before and after a step it must be "
                    "of one shape"
                )

    def _check_values(self, data: TensorDictBase) -> None:
        """Refuses entries of another shape or type than those that are held, and numbers that are not finite."""
        for key, value in data.items(True, True):
            held = self._storage.entry(key)
            if held is not None and (held.shape[1:] != value.shape[1:] or held.dtype != value.dtype):
                raise ValueError(
                    f"{key} is {list(value.shape[1:])} {value.dtype} in these rows and {list(held.shape[1:])} "
                    f"{held.dtype} in those that are held; make them alike"
                )
            if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
                wrong = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten()
                raise ValueError(
                    f"{key} is not finite in {len(wrong)} of {len(data)} rows, the first of them {int(wrong[0])}: what "
                    "is learnt of them would be lost; leave these rows out"
                )
        kind = data.get("transition_type", None)
        if kind is not None and len(kind) and not 0 <= int(kind.min()) <= int(kind.max()) <= 2:
            raise ValueError(
                f"transition_type: {int(kind.min())} to {int(kind.max())} in these rows; must be 0, 1 or 2"
            )

    def _columns(self, data: TensorDictBase) -> TensorDictBase:
        """What the table of episodes reads; empty where there is none."""
        if not self.episodes:
            return TensorDict({}, data.shape)
        columns = data.select("transition_type", "meta_episode", ("next", "reward"), strict=False)
        if "transition_type" not in columns.keys():  # all are real
            columns["transition_type"] = torch.zeros(len(data), 1, dtype=torch.int64)
        return columns.set("episode", episodes_of(data))

    def _task_of(self, data: TensorDictBase) -> Tensor:
        task = data.get("task_id", None)
        if self.num_tasks == 1 and (task is None or not self.episodes):
            return torch.zeros(len(data), dtype=torch.int64)
        if task is None:
            raise ValueError(f'rows lack the key "task_id", which a buffer of {self.num_tasks} tasks needs')
        return self.partition(task.reshape(-1))

    def _order(self, columns: TensorDictBase, task: Tensor) -> Tensor:
        """Stable order of the rows by (task, episode, not real)."""
        if not self.episodes:
            return task.argsort(stable=True)
        order = (columns["transition_type"].reshape(-1) != 0).argsort(stable=True)
        order = order[columns["episode"].reshape(-1)[order].argsort(stable=True)]
        return order[task[order].argsort(stable=True)]

    def _record(self, rows: TensorDictBase, task: Tensor, position: Tensor) -> None:
        """Enters the episodes of sorted rows in the table."""
        episode, real = rows["episode"].reshape(-1), rows["transition_type"].reshape(-1) == 0
        first = torch.ones_like(real)
        first[1:] = (task[1:] != task[:-1]) | (episode[1:] != episode[:-1])
        group = first.cumsum(0) - 1
        length = torch.bincount(group, weights=real.double()).long()
        reward = rows["next", "reward"].reshape(-1).double()
        returns = torch.bincount(group, weights=torch.where(real, reward, 0.0))
        has_rows = length > 0
        owner = task[first][has_rows]
        counts = torch.bincount(owner, minlength=self.num_tasks)
        rank = _rank(owner, counts)
        kept = rank >= (counts - self.episodes)[owner]
        slot = (owner[kept], ((self.seen[owner] + rank) % self.episodes)[kept])
        self._start[slot] = position[first][has_rows][kept]
        self._length[slot] = length[has_rows][kept]
        self._returns[slot] = returns[has_rows][kept]
        if "meta_episode" in rows.keys():
            self._meta[slot] = rows["meta_episode"].reshape(-1)[first][has_rows][kept]
        self.seen += counts
        self._count_usable()

    def _count_usable(self) -> None:
        oldest = (self.written - self.capacity).clamp(min=0)
        self.usable = (self._start >= oldest[:, None]).sum(1)

    def partition(self, tasks: Tensor) -> Tensor:
        """The partitions of task ids, int64 [M].

        Raises:
            IndexError: for an id that has none.
            ValueError: for what is no list of ids.
        """
        if tasks.ndim != 1:
            raise ValueError(f"tasks of shape {list(tasks.shape)}: give a list of ids, [M]; call .flatten() first")
        if not tasks.numel():
            return tasks
        if tasks.is_floating_point() or tasks.dtype == torch.bool:
            raise ValueError(f"tasks of type {tasks.dtype}: ids are whole numbers, int64")
        last = self.num_tasks - 1 if self.partitions is None else len(self.partitions) - 1
        for task in (int(tasks.min()), int(tasks.max())):
            if not 0 <= task <= last:
                raise IndexError(f"task id {task}: must lie in 0 .. {last}, the tasks of this buffer")
        if self.partitions is None:
            return tasks
        found = self.partitions[tasks]
        if int(found.min()) < 0:
            raise IndexError(
                f"task id {int(tasks[found < 0][0])}: this buffer holds training tasks only; give it their ids"
            )
        return found

    def held(self, tasks: Tensor) -> Tensor:
        """Rows held per task, int64 [M], for ``tasks`` [M]."""
        return self.written[tasks].clamp(max=self.capacity)

    def available(self, tasks: Tensor, recent: int | None = None) -> Tensor:
        """Usable episodes per task, int64 [M], at most ``recent`` (None: all that the table remembers).

        Raises:
            ValueError: if episodes are not tracked, or if ``recent`` lies outside 1 .. episodes.
        """
        if not self.episodes:
            raise ValueError("this buffer keeps no episodes: create it with episodes=E, the number to remember")
        if recent is not None and not 1 <= recent <= self.episodes:
            raise ValueError(
                f"recent = {recent}: must lie in 1 .. {self.episodes}, the episodes that this buffer remembers per task"
            )
        usable = self.usable[tasks]
        return usable if recent is None else usable.clamp(max=recent)

    def look_up(self, tasks: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Entries of the episode table.

        Args:
            tasks: int64 [M].
            back: int64 [M, ...]; 0 is the latest episode of the task, 1 the one before.

        Returns:
            Absolute start and number of real rows, each of ``back``'s shape.
        """
        slot = self._slot(tasks, back)
        return self._start.take(slot), self._length.take(slot)

    def _slot(self, tasks: Tensor, back: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (back.ndim - 1)
        return (self.seen[tasks].view(shape) - 1 - back) % self.episodes + (tasks * self.episodes).view(shape)

    def returns(self, tasks: Tensor, back: Tensor) -> Tensor:
        """Returns of episodes: the sums of the reward over their real rows, float64 of ``back``'s shape."""
        return self._returns.take(self._slot(tasks, back))

    def meta_episodes(self, tasks: Tensor, back: Tensor) -> Tensor:
        """The numbers of the meta-episodes of episodes, int64 of ``back``'s shape; -1 where they have none."""
        return self._meta.take(self._slot(tasks, back))

    def best(self, tasks: Tensor, back: Tensor) -> Tensor:
        """The one of highest return among the last dimension of ``back`` [M, ..., n]: int64 [M, ...]."""
        return back.gather(-1, self.returns(tasks, back).argmax(-1, keepdim=True)).squeeze(-1)

    def locate(self, tasks: Tensor, position: Tensor) -> Tensor:
        """Rows of the storage that hold absolute positions; ``tasks`` broadcasts against ``position``."""
        return tasks * self.capacity + position % self.capacity

    def _empty(self, empty_write_count: bool = True) -> None:
        for tensor in (self.written, self.seen, self.usable, self._length, self._returns):
            tensor.zero_()
        self._start.fill_(-1)
        self._meta.fill_(-1)
        if empty_write_count:
            self._write_count = 0

    def state_dict(self) -> dict[str, Any]:
        """Cursors and the episode table, as copies."""
        return {
            "capacity": self.capacity,
            "write_count": self._write_count,
            "written": self.written.clone(),
            "seen": self.seen.clone(),
            "start": self._start.clone(),
            "length": self._length.clone(),
            "returns": self._returns.clone(),
            "meta": self._meta.clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Raises:
            ValueError: if it comes from a buffer of another shape.
        """
        theirs = (*state_dict["start"].shape, state_dict["capacity"])
        ours = (self.num_tasks, self.episodes, self.capacity)
        if theirs != ours:
            raise ValueError(f"saved with (num_tasks, episodes, capacity) = {theirs}, but this buffer has {ours}")
        self._write_count = state_dict["write_count"]
        self.written, self.seen = state_dict["written"].clone(), state_dict["seen"].clone()
        self._start, self._length = state_dict["start"].clone(), state_dict["length"].clone()
        self._returns, self._meta = state_dict["returns"].clone(), state_dict["meta"].clone()
        self._count_usable()

    def dumps(self, path: str | Path) -> None:
        """Saves the state in the folder ``path``."""
        dump_state(self.state_dict(), path, "task_writer.pt")

    def loads(self, path: str | Path) -> None:
        """Loads the state from the folder ``path``."""
        self.load_state_dict(torch.load(Path(path) / "task_writer.pt", weights_only=True))


def _named(key: NestedKey, value: Tensor) -> str:
    return f"{key} of shape {list(value.shape)}"


def _rank(owner: Tensor, counts: Tensor) -> Tensor:
    """Rank of each element among those of its owner; ``owner`` is sorted, ``counts`` its histogram."""
    return torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]


def dump_state(state: dict[str, Any], path: str | Path, name: str) -> None:
    """Saves ``state`` as the file ``name`` of the folder ``path``."""
    folder = Path(path)
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
