"""Storages of TorchRL's that may be filled in any order of rows."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage
from torchrl.data.replay_buffers.storages import TensorStorage


class Partitioned(TensorStorage):
    """What makes a storage of TorchRL's one that may be filled in any order of rows; put it before that one.

    TorchRL's storages let only their first ``len(storage)`` rows be read, which suits one ring alone. Here all rows can
    be read from the first write on, and those not yet written hold zeros, never the remains of other memory.
    """

    def _init(self, data: Any) -> None:
        super()._init(data)  # type: ignore[call-arg]
        cast(TensorDictBase, self._storage).zero_()

    def _get_new_len(self, data: Any, cursor: Any) -> None:
        self._len = self.max_size

    def read(self, rows: Tensor) -> TensorDictBase:
        """The given rows, int64 of any shape; as ``get``, but 2 to 3 times as fast on a CPU.

        Raises:
            RuntimeError: if nothing was ever written.
        """
        if not self.initialized:
            raise RuntimeError("nothing was ever written to the buffer: collect data before drawing from it")
        return _take(cast(TensorDictBase, self._storage), rows.reshape(-1), rows.shape)

    def entry(self, key: Any) -> Tensor | None:
        """All rows of one entry; ``None`` before the first write."""
        return cast(TensorDictBase, self._storage).get(key) if self.initialized else None

    @property
    def keys(self) -> set[Any]:
        """The stored keys, nested ones as tuples; none before the first write."""
        return set(cast(TensorDictBase, self._storage).keys(True, True)) if self.initialized else set()


class PartitionedStorage(Partitioned, LazyTensorStorage):
    """A ``LazyTensorStorage`` that may be filled in any order of rows, see :class:`Partitioned`.

    Examples:
        >>> from tensordict import TensorDict
        >>> storage = PartitionedStorage(4)
        >>> storage.set(torch.tensor([2]), TensorDict({"x": torch.ones(1)}, [1]))
        >>> storage.read(torch.arange(4))["x"]
        tensor([0., 0., 1., 0.])
    """


class PartitionedMemmapStorage(Partitioned, LazyMemmapStorage):
    """A ``LazyMemmapStorage``, on the disk, that may be filled in any order of rows, see :class:`Partitioned`.

    Examples:
        >>> from functools import partial
        >>> from tempfile import TemporaryDirectory
        >>> from peach_trl.data import TaskReplayBuffer
        >>> with TemporaryDirectory() as folder:
        ...     buffer = TaskReplayBuffer(2, 10, seed=0, storage=partial(PartitionedMemmapStorage, scratch_dir=folder))
        ...     _ = buffer.extend(TensorDict({"task_id": torch.tensor([[1]]), "x": torch.ones(1)}, [1]))
        ...     buffer.sample_tasks(torch.tensor([1]), 2)["x"]
        tensor([[1., 1.]])
    """


def _take(source: TensorDictBase, rows: Tensor, shape: torch.Size) -> TensorDict:
    taken = {
        key: _take(value, rows, shape)
        if isinstance(value, TensorDictBase)
        else value.index_select(0, rows).view(*shape, *value.shape[1:])
        for key, value in source.items()
    }
    return TensorDict(taken, shape)  # type: ignore[arg-type]
